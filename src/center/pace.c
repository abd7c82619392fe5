/*
 * How far a stage is whose work can't be counted: told from how long its parts took on this host before. What is learnt
 * is kept in STATE/pace.json. A part that takes longer than expected slows down instead of arriving, and then there is
 * no time left to be told.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/str.h"
#include "center/engine.h"

#define PACE_KNEE 0.9 /* of the expected time; from there on a part only nears its end */
#define PACE_NEW  0.4 /* weight of the newest measurement */
#define PACE_MAX  86400.0

/* Guesses for a host that has none of its own yet. */
static const struct {
	const char *name;
	double seconds;
} parts[PACE_PARTS] = {
    [PACE_CHECK] = {"check", 1},           [PACE_CONVERT] = {"convert", 60},
    [PACE_IMAGE] = {"image", 1},           [PACE_IMAGE_CHECK] = {"image_check", 40},
    [PACE_TEST_BOOT] = {"test_boot", 120}, [PACE_CLEANING] = {"cleaning", 1},
};

static char *pace_path(const struct engine *en)
{
	return str_printf("%s/pace.json", en->state);
}

void pace_load(struct engine *en)
{
	_cleanup_free_ char *path = pace_path(en), *text = NULL;
	_cleanup_json_ json_t *o = NULL;
	size_t len;

	if (path && io_read_file(path, 65536, &text, &len, NULL) == 0)
		jsn_parse(text, len, 65536, &o, NULL);
	for (size_t i = 0; i < PACE_PARTS; i++) {
		double x = json_number_value(json_object_get(o, parts[i].name));

		en->pace[i] = x > 0 && x < PACE_MAX ? x : 0;
	}
}

double pace_guess(struct engine *en, enum pace_part part)
{
	ENGINE_LOCK(en);

	return en->pace[part] > 0 ? en->pace[part] : parts[part].seconds;
}

/* Only a comfort: what can't be kept is learnt again. */
static void pace_save(struct engine *en)
{
	_cleanup_free_ char *path = pace_path(en), *text = NULL;
	_cleanup_json_ json_t *o = json_object();
	struct err e = {0};

	pthread_mutex_lock(&en->lock);
	for (size_t i = 0; i < PACE_PARTS; i++)
		if (en->pace[i] > 0)
			json_object_set_new(o, parts[i].name, json_real(en->pace[i]));
	pthread_mutex_unlock(&en->lock);
	text = o ? jsn_text(o) : NULL;
	if (path && text && io_write_file_atomic(path, text, strlen(text), 0600, &e) < 0)
		log_warn("%s", e.msg);
}

void pace_plan(struct live *l, int stage, unsigned set)
{
	ENGINE_LOCK(l->engine);

	l->stage = stage;
	l->pace = (struct pace){.part = PACE_PARTS};
	for (size_t i = 0; i < PACE_PARTS; i++)
		if (set & 1u << i)
			l->pace.expected[i] = l->engine->pace[i] > 0 ? l->engine->pace[i] : parts[i].seconds;
}

void pace_begin(struct live *l, enum pace_part part)
{
	ENGINE_LOCK(l->engine);

	l->pace.part = part;
	l->pace.began = id_now_mono();
	l->tick = ++l->engine->tick;
}

void pace_end(struct live *l, bool learn)
{
	struct engine *en = l->engine;
	bool news = false;

	pthread_mutex_lock(&en->lock);
	if (l->pace.part < PACE_PARTS) {
		double took = MAX(id_now_mono() - l->pace.began, 0.01), *known = &en->pace[l->pace.part];

		l->pace.done |= 1u << l->pace.part;
		if (learn) {
			*known = *known > 0 ? *known * (1 - PACE_NEW) + took * PACE_NEW : took;
			/* Not for every second's fraction of a trifle. */
			news = *known > l->pace.expected[l->pace.part] + 0.5 ||
			       *known < l->pace.expected[l->pace.part] - 0.5;
		}
		l->pace.part = PACE_PARTS;
	}
	pthread_mutex_unlock(&en->lock);
	if (news)
		pace_save(en);
}

double pace_fraction(double elapsed, double expected)
{
	double x = elapsed / expected;

	/* The hyperbola that goes on from the line without a bend. */
	return x <= PACE_KNEE ? MAX(x, 0.0) : 1 - (1 - PACE_KNEE) * (1 - PACE_KNEE) / (x - PACE_KNEE + 1 - PACE_KNEE);
}

bool pace_look(const struct live *l, double *ret_percent, double *ret_left)
{
	const struct pace *p = &l->pace;
	double all = 0, done = 0, left = 0;
	bool late = false;

	for (size_t i = 0; i < PACE_PARTS; i++) {
		double elapsed = i == p->part ? id_now_mono() - p->began : 0;

		all += p->expected[i];
		if (p->done & 1u << i) {
			done += p->expected[i];
			continue;
		}
		if (p->expected[i] > 0)
			done += p->expected[i] * pace_fraction(elapsed, p->expected[i]);
		left += p->expected[i] - elapsed;
		late = late || elapsed > p->expected[i];
	}
	if (all <= 0)
		return false;
	*ret_percent = MIN((double)(int)(1000 * done / all) / 10, 99.9);
	*ret_left = late ? -1 : (double)(int64_t)(left + 0.999);
	return true;
}
