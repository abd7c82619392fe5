/* Private to the room: what guard.c needs from nobody else, and the parts of mounts.c that tests drive. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "track/track.h"

/*
 * Does block device `dev` lie, through partitions, device-mapper and md, on one of `disks`? `sys` is the root of sysfs
 * ("/sys").
 */
bool mounts_dev_on(const char *sys, dev_t dev, const dev_t *disks, size_t n);
