/* Opens a copied system, runs the table of steps over it and writes the report. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

/* In this order: the initramfs takes what fstab, crypttab and resume say; leftovers looks at the result. */
const struct guest_step *const guest_steps[] = {
    &guest_step_fstab,       &guest_step_crypttab,
    &guest_step_resume,      &guest_step_caches,
    &guest_step_net_names,   &guest_step_network,
    &guest_step_cloud_init,  &guest_step_agent,
    &guest_step_guest_tools, &guest_step_initramfs,
    &guest_step_loader,      &guest_step_grub,
    &guest_step_leftovers,   NULL,
};
#define STEPS (ARRAY_SIZE(guest_steps) - 1)

static const char *const state_names[] = {"not_needed", "done", "skipped", "failed"};

#define SPACE_MIN  (UINT64_C(8) << 20)
#define INODES_MIN 64

void guest_note(struct guest_result *r, const char *fmt, ...)
{
	va_list ap;
	char text[512];

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* Not UTF-8: a name from the copy; the note goes without it. */
	json_array_append_new(r->notes, json_string(text) ?: json_string("a name that is not UTF-8 was found"));
}

static bool word_in(const char *words, const char *word)
{
	struct guest_span rest = {words, strlen(words)}, w;

	while (guest_next_word(&rest, &w))
		if (guest_span_is(w, word))
			return true;
	return false;
}

bool guest_is_debian(const struct guest *g)
{
	return strcmp(g->id, "debian") == 0 || strcmp(g->id, "ubuntu") == 0 || word_in(g->id_like, "debian") ||
	       word_in(g->id_like, "ubuntu");
}

static int guest_read_os(struct guest *g, struct err *e)
{
	static const char *const paths[] = {"/etc/os-release", "/usr/lib/os-release"};
	_cleanup_free_ char *text = NULL;
	size_t len = 0;

	for (size_t i = 0; i < ARRAY_SIZE(paths) && !text; i++)
		guest_read(g, paths[i], &text, &len, NULL);
	if (!text)
		return err_set(e, -ENOENT, "no operating system below '%s' (no os-release)", g->path);
	guest_assignment(text, len, "ID", g->id, sizeof(g->id));
	guest_assignment(text, len, "ID_LIKE", g->id_like, sizeof(g->id_like));
	guest_assignment(text, len, "VERSION_ID", g->version, sizeof(g->version));
	guest_assignment(text, len, "PRETTY_NAME", g->pretty, sizeof(g->pretty));
	return 0;
}

/* A kernel is bootable when the boot loader can be given its image. */
int guest_find_kernels(struct guest *g, struct err *e)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int r = guest_list(g, "/boot", "", &names, e);

	if (r < 0)
		return r;
	json_array_clear(g->kernels);
	for (size_t i = 0; i < names.n; i++) {
		char modules[300];

		if (!str_starts(names.v[i], "vmlinuz-"))
			continue;
		snprintf(modules, sizeof(modules), "/lib/modules/%s", names.v[i] + strlen("vmlinuz-"));
		if (guest_exists(g, modules))
			json_array_append_new(g->kernels, json_string(names.v[i] + strlen("vmlinuz-")));
	}
	return 0;
}

int guest_open(const struct guest_settings *s, struct guest **ret, struct err *e)
{
	struct guest *g = calloc(1, sizeof(*g));
	int r;

	if (!g)
		return err_nomem(e);
	g->volumes = s->volumes;
	g->root_volume = s->root_volume;
	g->can_run = s->can_run;
	g->kernels = json_array();
	g->warnings = json_array();
	g->path = g->root_path = strdup(s->root);
	g->root = open(s->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (g->root < 0)
		r = err_sys(e, "cannot open '%s'", s->root);
	else if (!g->root_path || !g->kernels || !g->warnings)
		r = err_nomem(e);
	else
		r = guest_read_os(g, e);
	if (r < 0) {
		guest_close(g, NULL);
		return r;
	}
	*ret = g;
	return 0;
}

int guest_close(struct guest *g, struct err *e)
{
	int r;

	if (!g)
		return 0;
	if (g->root >= 0)
		close(g->root);
	r = guest_unmount(g, e);
	json_decref(g->kernels);
	json_decref(g->warnings);
	free(g->root_path);
	free(g);
	return r;
}

int guest_set_address(struct guest *g, const json_t *network, struct err *e)
{
	int r = network && !json_is_null(network) ? ip4_plan_read(network, &g->address, e) : 0;

	if (r == 0)
		g->has_address = network && !json_is_null(network);
	return r;
}

static int guest_boot_disk(const struct guest *g)
{
	for (size_t i = 0; i < g->volumes->ndisks; i++)
		if (g->volumes->disks[i].grub)
			return (int)i;
	return -1;
}

static bool guest_has_esp(const struct guest *g)
{
	return guest_exists(g, "/boot/efi/EFI") || guest_exists(g, "/efi/EFI");
}

static json_t *guest_describe(const struct guest *g)
{
	int boot = guest_boot_disk(g);
	json_t *o = json_pack("{s:{s:s, s:s, s:s, s:s}, s:s, s:i, s:O, s:[], s:[]}", "system", "id", g->id, "id_like",
			      g->id_like, "version", g->version, "name", g->pretty, "firmware",
			      boot < 0 && guest_has_esp(g) ? "uefi" : "bios", "boot_disk", MAX(boot, 0), "kernels",
			      g->kernels, "steps", "warnings");

	if (o)
		json_array_extend(json_object_get(o, "warnings"), g->warnings);
	if (o && g->root_volume)
		json_object_set_new(o, "root",
				    json_pack("{s:s, s:s, s:s}", "device", g->root_volume->device, "uuid",
					      g->root_volume->uuid, "fstype", g->root_volume->fstype));
	return o;
}

static int guest_unsupported(const struct guest *g, struct err *e)
{
	int boot = guest_boot_disk(g);

	if (!guest_is_debian(g))
		return err_set(e, -ENOTSUP,
			       "the system is '%s', which the conversion does not know (it knows Debian and Ubuntu)",
			       g->pretty[0] ? g->pretty : g->id);
	if (!json_array_size(g->kernels))
		return err_set(
		    e, -ENOTSUP,
		    "'/boot' holds no kernel whose modules are there (a container, or /boot was not copied)");
	if (boot < 0 && guest_has_esp(g))
		return err_set(e, -ENOTSUP, "the system boots by UEFI, which the conversion does not do yet");
	if (boot < 0)
		return err_set(e, -ENOTSUP,
			       "no disk has GRUB in its boot sector (the conversion knows no other boot loader)");
	return 0;
}

/* Changing files on a full filesystem would leave them empty. */
int guest_check_space(const struct guest *g, struct err *e)
{
	static const char *const dirs[] = {"/etc", "/boot", "/usr/lib"};

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		_cleanup_close_ int fd = guest_openat(g, dirs[i], O_RDONLY | O_DIRECTORY, 0);
		struct statvfs st;

		if (fd < 0 || fstatvfs(fd, &st) < 0)
			continue;
		if ((uint64_t)st.f_bfree * st.f_frsize < SPACE_MIN || (st.f_files && st.f_ffree < INODES_MIN))
			return err_set(e, -ENOSPC,
				       "the filesystem of '%s' in the copy is full (free 8 MiB on the source)",
				       dirs[i]);
	}
	return 0;
}

int guest_run_step(struct guest *g, const struct guest_step *s, json_t **ret)
{
	struct guest_result r = {.state = GUEST_NOT_NEEDED, .files = json_array(), .notes = json_array()};
	struct err e = {0};
	json_t *o;
	int rc;

	if (!r.files || !r.notes)
		return -ENOMEM;
	if (s->applies && !s->applies(g)) {
		r.state = GUEST_SKIPPED;
		str_add(&r.summary, "not present");
	} else {
		rc = s->run(g, &r, &e);
		if (rc < 0) {
			r.state = GUEST_FAILED;
			str_release(&r.summary);
			str_add(&r.summary, e.msg);
		} else if (!r.summary.len) {
			str_add(&r.summary, r.state == GUEST_DONE ? "changed" : "nothing to change");
		}
	}
	o = json_pack("{s:s, s:s, s:o, s:o, s:o}", "name", s->name, "state", state_names[r.state], "summary",
		      json_string(str_ok(&r.summary) ? r.summary.s : "") ?: json_string("(not UTF-8)"), "files",
		      r.files, "notes", r.notes);
	str_release(&r.summary);
	if (!o)
		return -ENOMEM;
	*ret = o;
	return 0;
}

/* Failed steps and notes in one place, for who reads nothing else. */
static void guest_gather_warnings(json_t *warnings, const json_t *step)
{
	const char *name = json_string_value(json_object_get(step, "name"));
	json_t *note;
	size_t i;

	if (strcmp(json_string_value(json_object_get(step, "state")), "failed") == 0)
		json_array_append_new(
		    warnings, json_sprintf("%s: %s", name, json_string_value(json_object_get(step, "summary"))));
	json_array_foreach(json_object_get(step, "notes"), i, note)
	    json_array_append_new(warnings, json_sprintf("%s: %s", name, json_string_value(note)));
}

static void guest_tell(guest_event_fn event, void *arg, size_t i)
{
	_cleanup_json_ json_t *o = NULL;

	if (!event)
		return;
	o = json_pack("{s:s, s:s, s:i, s:i}", "event", "step", "name", guest_steps[i]->name, "index", (int)i + 1,
		      "count", (int)STEPS);
	if (o)
		event(arg, o);
}

int guest_convert(struct guest *g, guest_event_fn event, void *arg, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *report = NULL;
	int r = guest_find_kernels(g, e);

	if (r < 0)
		return r;
	report = guest_describe(g);
	if (!report)
		return err_nomem(e);
	r = guest_unsupported(g, e);
	if (r == 0)
		r = guest_check_space(g, e);
	for (size_t i = 0; r == 0 && i < STEPS; i++) {
		json_t *step = NULL;

		guest_tell(event, arg, i);
		if (guest_run_step(g, guest_steps[i], &step) < 0)
			return err_nomem(e);
		json_array_append_new(json_object_get(report, "steps"), step);
		guest_gather_warnings(json_object_get(report, "warnings"), step);
	}
	*ret = take_ptr(&report);
	return r;
}
