/* The center's answer to a sync, and what we tell it about a task. The answer is outside text: every field is bounded.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define TASK_INTERVAL_MIN 1.0
#define TASK_INTERVAL_MAX 3600.0
#define TASK_NOTES_MAX    200
#define TASK_FREEZE_MAX   3600
#define TASK_LOG_MAX      (UINT64_C(1) << 52)

static int task_identifier(const json_t *o, const char *key, const char *noun, char out[48], struct err *e)
{
	const char *s = NULL;
	int r = jsn_get_str(o, key, true, 47, &s, e);

	if (r < 0)
		return r;
	if (!id_is(noun, s))
		return err_set(e, -EINVAL, "'%s' is not the identifier of a %s", s, noun);
	strcpy(out, s);
	return 0;
}

/* A path below /dev; "sda" means "/dev/sda". */
static int task_disk(const json_t *v, char out[80], struct err *e)
{
	const char *s = json_string_value(v);
	size_t n = json_string_length(v);

	if (!s || !n || n > 60 || strlen(s) != n || strstr(s, ".."))
		return err_set(e, -EINVAL, "'disks' must be a list of device names");
	for (const char *p = s; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("/-_.:+", *p))
			return err_set(e, -EINVAL, "'disks' must be a list of device names");
	if (*s == '/' && !str_starts(s, "/dev/"))
		return err_set(e, -EINVAL, "'%s' in 'disks' is not below /dev", s);
	snprintf(out, 80, "%s%s", *s == '/' ? "" : "/dev/", s);
	return 0;
}

static int task_disks(const json_t *o, struct task *t, struct err *e)
{
	const json_t *list = json_object_get(o, "disks");

	if (!list || json_is_null(list))
		return 0;
	if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > TASK_DISKS_MAX)
		return err_set(e, -EINVAL, "'disks' must be null or a list of 1 to %d device names", TASK_DISKS_MAX);
	for (size_t i = 0; i < json_array_size(list); i++) {
		int r = task_disk(json_array_get(list, i), t->disks[i], e);

		if (r < 0)
			return r;
		t->ndisks = i + 1;
	}
	return 0;
}

static int task_parameters(const json_t *p, struct task *t, struct err *e)
{
	uint64_t connections = 4, compression = STREAM_COMPRESSION_AUTO, rate = 0, max_freeze = 0;
	const char *on_error = "fail", *encryption = "on", *word = json_string_value(json_object_get(p, "compression"));
	bool checksum = false, boot_only = false;

	if (p && !json_is_null(p) && !json_is_object(p))
		return err_set(e, -EINVAL, "'parameters' must be an object");
	if (jsn_get_u64(p, "connections", false, 1, STREAM_CONNECTIONS_MAX, &connections, e) < 0 ||
	    (!(word && strcmp(word, "auto") == 0) &&
	     jsn_get_u64(p, "compression", false, 0, STREAM_COMPRESSION_MAX, &compression, e) < 0) ||
	    jsn_get_u64(p, "rate_mbit", false, 0, 1000000, &rate, e) < 0 ||
	    jsn_get_u64(p, "max_freeze", false, 1, TASK_FREEZE_MAX, &max_freeze, e) < 0 ||
	    jsn_get_bool(p, "checksum", false, &checksum, e) < 0 ||
	    jsn_get_bool(p, "boot_only", false, &boot_only, e) < 0 ||
	    jsn_get_str(p, "encryption", false, 16, &encryption, e) < 0 ||
	    jsn_get_str(p, "on_read_error", false, 16, &on_error, e) < 0)
		return -EINVAL;
	if (strcmp(on_error, "fail") != 0 && strcmp(on_error, "zero") != 0)
		return err_set(e, -EINVAL, "'on_read_error' must be 'fail' or 'zero', not '%s'", on_error);
	t->connections = (unsigned)connections;
	t->compression = (unsigned)compression;
	t->rate_mbit = rate;
	t->max_freeze = max_freeze;
	t->checksum = checksum;
	t->boot_only = boot_only;
	t->clear = strcmp(encryption, "off") == 0;
	t->zero_unreadable = strcmp(on_error, "zero") == 0;
	return 0;
}

static int task_host(const json_t *o, struct task *t, struct err *e)
{
	const char *host = "";
	int r = jsn_get_str(o, "host", false, sizeof(t->host) - 1, &host, e);

	if (r < 0)
		return r;
	for (const char *p = host; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("-._:", *p))
			return err_set(e, -EINVAL, "'host' is neither a name nor an address");
	strcpy(t->host, host);
	return 0;
}

/* A center that wants no log, or doesn't know of any, says nothing. */
static int task_log(const json_t *o, struct task *t, struct err *e)
{
	const json_t *at = json_object_get(o, "log_at");

	t->has_log = at && !json_is_null(at);
	return t->has_log ? jsn_get_u64(o, "log_at", true, 0, TASK_LOG_MAX, &t->log_at, e) : 0;
}

static int task_parse(const json_t *o, struct task *t, struct err *e)
{
	const char *action = NULL, *psk = NULL;
	uint64_t port = 0;

	if (!json_is_object(o))
		return err_set(e, -EINVAL, "'task' must be an object");
	if (jsn_get_str(o, "action", true, 32, &action, e) < 0)
		return -EINVAL;
	if (strcmp(action, "send") != 0)
		return err_set(e, -ENOTSUP, "the center wants '%s', which this agent does not know: update the agent",
			       action);
	if (task_identifier(o, "run", "run", t->run, e) < 0 || task_identifier(o, "job", "job", t->job, e) < 0 ||
	    jsn_get_u64(o, "port", true, 1, 65535, &port, e) < 0 || jsn_get_str(o, "psk", true, 64, &psk, e) < 0 ||
	    task_host(o, t, e) < 0 || task_disks(o, t, e) < 0 || task_log(o, t, e) < 0)
		return -EINVAL;
	if (str_unhex(psk, t->psk, sizeof(t->psk)) < 0)
		return err_set(e, -EINVAL, "'psk' must be %zu hex digits", 2 * sizeof(t->psk));
	t->port = (uint16_t)port;
	return task_parameters(json_object_get(o, "parameters"), t, e);
}

int task_reply_parse(const json_t *o, struct task_reply *ret, struct err *e)
{
	const json_t *interval = json_object_get(o, "interval_seconds"), *task = json_object_get(o, "task");
	struct task_reply reply = {.interval = 10};
	int r;

	if (!json_is_object(o))
		return err_set(e, -EINVAL, "the center's answer is not a JSON object");
	if (interval) {
		if (!json_is_number(interval) || !isfinite(json_number_value(interval)))
			return err_set(e, -EINVAL, "'interval_seconds' must be a number");
		reply.interval = MIN(MAX(json_number_value(interval), TASK_INTERVAL_MIN), TASK_INTERVAL_MAX);
	}
	if (task && !json_is_null(task)) {
		r = task_parse(task, &reply.task, e);
		if (r < 0)
			return r;
		reply.has_task = true;
	}
	*ret = reply;
	return 0;
}

/* ---- what we tell ---- */

const char *task_phase(enum stream_phase phase)
{
	static const char *const names[] = {
	    [STREAM_CONNECTING] = "connecting",
	    [STREAM_FULL] = "full",
	    [STREAM_COMPARE] = "compare",
	    [STREAM_FREEZING] = "freezing",
	    [STREAM_FROZEN] = "frozen",
	    [STREAM_FINISHING] = "finishing",
	    [STREAM_DONE] = "done",
	};

	return (size_t)phase < ARRAY_SIZE(names) && names[phase] ? names[phase] : "unknown";
}

/* Names of files and volumes are any bytes, and JSON is UTF-8: what isn't ASCII becomes '?' when the whole isn't UTF-8.
 */
json_t *task_text(const char *s)
{
	json_t *j = json_string(s);
	_cleanup_free_ char *copy = j ? NULL : strdup(s);

	for (char *p = copy; p && *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	return copy ? json_string(copy) : j;
}

/* JSON has no infinity; negative means unknown. */
static json_t *task_number(double v)
{
	return isfinite(v) && v >= 0 ? json_real(v) : json_null();
}

int task_seconds(const char *text, double min, double max, double *ret)
{
	char *end = NULL;
	double v = strtod(text, &end);

	if (end == text || *end || !isfinite(v) || v < min || v > max)
		return -EINVAL;
	*ret = v;
	return 0;
}

/* Figures of a tracked run: what it is about to do, and why it takes as long. */
static void task_gauges(json_t *o, const struct stream_progress *p)
{
	const struct stream_gauges *g = &p->gauges;

	json_object_set_new(o, "mode", json_string(p->mode == STREAM_TRACKED ? "tracked" : "compare"));
	if (p->mode != STREAM_TRACKED || g->bottleneck == STREAM_NOTHING)
		return;
	json_object_set_new(o, "churn", task_number(g->churn));
	json_object_set_new(o, "link", task_number(g->link));
	json_object_set_new(o, "disk", task_number(g->disk));
	json_object_set_new(o, "cpu", task_number(g->cpu));
	json_object_set_new(o, "bottleneck", json_string(stream_bottleneck_name(g->bottleneck)));
	json_object_set_new(o, "converges", json_boolean(isfinite(g->converge_seconds)));
	json_object_set_new(o, "converge_seconds", task_number(g->converge_seconds));
}

void task_tracking(json_t *o, const char *how, const char *why)
{
	json_object_set_new(o, "tracking", json_string(how));
	if (*why)
		json_object_set_new(o, "untracked", task_text(why));
}

json_t *task_progress(const struct stream_progress *p)
{
	double percent = p->bytes_total ? 100.0 * (double)p->bytes_done / (double)p->bytes_total : 0;
	json_t *o;

	o = json_pack("{s:s, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "phase", task_phase(p->phase),
		      "round", (json_int_t)p->round, "percent", task_number(MIN(percent, 100.0)), "bytes_total",
		      (json_int_t)p->bytes_total, "bytes_done", (json_int_t)p->bytes_done, "bytes_read",
		      (json_int_t)p->bytes_read, "bytes_sent", (json_int_t)p->bytes_sent, "bytes_changed",
		      (json_int_t)p->bytes_changed, "speed", task_number(p->speed), "seconds_left",
		      task_number(p->seconds_left), "expected_freeze_seconds", task_number(p->expected_freeze),
		      "freeze_ms", task_number(p->freeze_seconds < 0 ? -1 : p->freeze_seconds * 1000));
	if (o)
		task_gauges(o, p);
	return o;
}

/* The list is cut, what it is about isn't kept from anybody. */
static void task_note_zeroed(json_t *notes, const struct stream_result *r)
{
	_cleanup_free_ char *note = NULL;
	uint64_t bytes = 0;

	for (size_t i = 0; i < r->nzeroed; i++)
		bytes += r->zeroed[i].length;
	if (r->nzeroed > TASK_NOTES_MAX)
		note =
		    str_printf("%zu unreadable ranges, %llu bytes in all, became zeros; only the first %d are listed",
			       r->nzeroed, (unsigned long long)bytes, TASK_NOTES_MAX);
	if (note)
		json_array_append_new(notes, json_string(note));
}

json_t *task_result(const struct stream_result *r, const char *const *disks, size_t n)
{
	json_t *notes = json_array(), *zeroed = json_array(), *names = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(names, task_text(disks[i]));
	for (size_t i = 0; i < MIN(r->nnotes, (size_t)TASK_NOTES_MAX); i++)
		json_array_append_new(notes, task_text(r->notes[i]));
	for (size_t i = 0; i < MIN(r->nzeroed, (size_t)TASK_NOTES_MAX); i++)
		json_array_append_new(zeroed, json_pack("{s:I, s:I, s:I}", "disk", (json_int_t)r->zeroed[i].disk,
							"offset", (json_int_t)r->zeroed[i].offset, "length",
							(json_int_t)r->zeroed[i].length));
	task_note_zeroed(notes, r);
	return json_pack(
	    "{s:o, s:o, s:o, s:o, s:o}", "live",
	    json_pack("{s:I, s:f}", "bytes", (json_int_t)r->totals.live_bytes, "seconds", r->totals.live_seconds),
	    "totals", task_progress(&r->totals), "notes", notes, "zeroed", zeroed, "disks", names);
}

json_t *task_error(const struct err *e)
{
	static const struct {
		int code;
		const char *name;
		bool temporary;
	} codes[] = {{-ENOSPC, "no_space", true},
		     {-ECANCELED, "cancelled", false},
		     {-EIO, "read_error", false},
		     {-ECONNREFUSED, "connection_failed", true},
		     {-ECONNRESET, "connection_failed", true},
		     {-EPIPE, "connection_failed", true},
		     {-ETIMEDOUT, "timed_out", true},
		     {-ETIME, "source_busy", false},
		     {-ECHILD, "hook_failed", false},
		     {-EOWNERDEAD, "guard_lost", true},
		     {-ENOTRECOVERABLE, "freeze_failed", false},
		     {-EHOSTUNREACH, "connection_failed", true},
		     {-ENETUNREACH, "connection_failed", true},
		     {-ENETDOWN, "connection_failed", true},
		     {-EBUSY, "busy", true},
		     {-EAGAIN, "busy", true},
		     {-ENOMEM, "no_memory", true},
		     {-EPROTO, "protocol", false},
		     {-EPROTONOSUPPORT, "version", false},
		     {-ESTALE, "no_session", true},
		     {-EFBIG, "disks", false},
		     {-EREMOTEIO, "io", false},
		     {-EILSEQ, "mismatch", false},
		     {-EALREADY, "taken_over", false},
		     {-EPERM, "not_permitted", false},
		     {-EACCES, "not_permitted", false}};

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (codes[i].code == e->code)
			return json_pack("{s:s, s:o, s:b}", "code", codes[i].name, "message", task_text(e->msg),
					 "temporary", codes[i].temporary);
	return json_pack("{s:s, s:o, s:b}", "code", "send_failed", "message", task_text(e->msg), "temporary",
			 stream_is_temporary(e->code));
}

void task_drill(struct stream_send_params *p)
{
	const char *reconnect = getenv("REPLANT_RECONNECT"), *stall = getenv("REPLANT_STALL");
	uint64_t n;

	if (reconnect && str_u64(reconnect, 1, 86400, &n) == 0)
		p->reconnect_seconds = (double)n;
	if (stall && str_u64(stall, 1, 86400, &n) == 0)
		p->stall_seconds = (double)n;
}
