/* What the parts of replantd-scripted share: the script, and the world that they pretend. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

struct err;
struct provider_watch;
struct provider_settings;
struct hypervisor;

extern const char *script_dir;

/* $SCRIPT/NAME.WHAT, its first line; NULL when it isn't there. The caller frees. */
char *script_read(const char *name, const char *what);
bool script_has(const char *name, const char *what);
void nap(void);
void note(const char *name, const char *id);
/* What a call was given: $SCRIPT/NAME.given. */
void given(const char *name, const json_t *what);

/* $SCRIPT/world/KIND.ID */
char *world_path(const char *kind, const char *id);
void world_put(const char *kind, const char *id, const char *text);
bool world_has(const char *kind, const char *id, const char *text);
void world_remove(const char *kind, const char *id);
int misuse(const char *what, const char *id, struct err *e);

/* Delay, hold, failure: what every call starts with; also its death. */
int play(const char *name, const char *id, const struct provider_watch *w, struct err *e);
void emit(const struct provider_watch *w, json_t *event);

/* scripted_vms.c */
int vms_open(const char *kind, const struct provider_settings *s, const json_t *settings, struct hypervisor **ret,
	     struct err *e);
/* Does the disk of any instance stand on it? */
bool vms_stand_on(const char *image);
