/* The hypervisor "libvirt", for hypervisor_open(). */
#pragma once

#include "provider/provider.h"

int libvirt_open(const struct provider_settings *s, const json_t *settings, struct hypervisor **ret, struct err *e);
