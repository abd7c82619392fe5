/* Our virtio-serial port inside a machine: JSON lines in both directions. */
#pragma once

#include <jansson.h>

struct err;

/* Opens the port of that name; there may be no udev, so it is found in /sys. *ret: a descriptor. */
int port_open(const char *name, int *ret, struct err *e);
/* One line, as JSON. */
int port_read(int fd, json_t **ret, struct err *e);
int port_write(int fd, const json_t *event, struct err *e);
