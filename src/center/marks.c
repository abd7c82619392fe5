/* What is under way with an image, so that two don't get into each other's way. Only in memory: after a start of
 * the center nothing is under way. Of several centers one has the image, as long as it has a mark on it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "center/engine.h"

static struct image_mark **mark_find(struct engine *en, const char *image)
{
	struct image_mark **p = &en->marks;

	while (*p && strcmp((*p)->image, image) != 0)
		p = &(*p)->next;
	return p;
}

static bool mark_refuses(const struct image_mark *m, enum image_use use)
{
	if (m->uses[IMAGE_REMOVE])
		return true;
	return use == IMAGE_BOOT     ? m->uses[IMAGE_BOOT]
	       : use == IMAGE_REMOVE ? m->uses[IMAGE_BOOT] || m->uses[IMAGE_EXPORT]
				     : false;
}

static bool mark(struct engine *en, const char *image, enum image_use use)
{
	struct image_mark **p, *m;
	ENGINE_LOCK(en);

	p = mark_find(en, image);
	m = *p;
	if (m && mark_refuses(m, use))
		return false;
	if (!m) {
		m = calloc(1, sizeof(*m));
		if (!m)
			return false;
		snprintf(m->image, sizeof(m->image), "%s", image);
		*p = m;
	}
	m->uses[use]++;
	return true;
}

bool image_mark(struct engine *en, const char *image, enum image_use use)
{
	if (share_take(en, image) < 0)
		return false;
	if (mark(en, image, use))
		return true;
	share_drop(en, image);
	return false;
}

static void unmark(struct engine *en, const char *image, enum image_use use)
{
	struct image_mark **p, *m;
	ENGINE_LOCK(en);

	p = mark_find(en, image);
	m = *p;
	must(m && m->uses[use]);
	m->uses[use]--;
	if (!m->uses[IMAGE_BOOT] && !m->uses[IMAGE_EXPORT] && !m->uses[IMAGE_REMOVE]) {
		*p = m->next;
		free(m);
	}
	pthread_cond_broadcast(&en->changed);
}

void image_unmark(struct engine *en, const char *image, enum image_use use)
{
	unmark(en, image, use);
	share_drop(en, image);
}
