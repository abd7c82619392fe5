/* What a machine is made of: read from what people ask for, bounded and checked. */
#include "provider/local_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"

#define HW_CPUS_MAX   256
#define HW_MEMORY_MIN 128
#define HW_MEMORY_MAX (4u << 20) /* MiB */

const char *const local_buses[] = {"virtio", "scsi", "sata", NULL};
static const char *const hw_firmware[] = {"bios", "uefi", NULL};

/* One of the words; *ret stays when it is missing. */
static int hw_word(const json_t *o, const char *key, const char *const words[], size_t *ret, struct err *e)
{
	const char *s = NULL;
	int r = jsn_get_str(o, key, false, 32, &s, e);

	if (r < 0 || !s)
		return r;
	for (size_t i = 0; words[i]; i++)
		if (strcmp(words[i], s) == 0) {
			*ret = i;
			return 0;
		}
	return err_set(e, -EINVAL, "'%s' of '%s' is not known (the first of several is '%s')", s, key, words[0]);
}

/* A name, and nothing that QEMU would take for options of it. */
static bool hw_is_cpu(const char *s)
{
	return *s && strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(s) &&
	       *s != '-';
}

int local_hw_read(const json_t *o, struct local_hw *hw, struct err *e)
{
	const char *cpu = NULL;
	size_t firmware = hw->uefi, bus = hw->bus;
	int r = jsn_get_u64(o, "cpus", false, 1, HW_CPUS_MAX, &hw->cpus, e);

	r = r ?: jsn_get_u64(o, "memory_mib", false, HW_MEMORY_MIN, HW_MEMORY_MAX, &hw->memory_mib, e);
	r = r ?: jsn_get_str(o, "cpu", false, sizeof(hw->cpu) - 1, &cpu, e);
	r = r ?: hw_word(o, "firmware", hw_firmware, &firmware, e);
	r = r ?: hw_word(o, "bus", local_buses, &bus, e);
	if (r < 0)
		return r;
	if (cpu && !hw_is_cpu(cpu))
		return err_set(e, -EINVAL, "'%s' is no model of a processor ('host', 'max', or a name like 'qemu64')",
			       cpu);
	if (cpu)
		snprintf(hw->cpu, sizeof(hw->cpu), "%s", cpu);
	hw->uefi = firmware == 1;
	hw->bus = (enum qemu_bus)bus;
	return 0;
}

int local_hw_check(const struct local_hw *hw, const char *accel, struct err *e)
{
	if (strcmp(hw->cpu, "host") == 0 && strcmp(accel, "kvm") != 0)
		return err_set(e, -EINVAL,
			       "the processor 'host' is only where KVM works, and here it does not (take 'max')");
	return hw->uefi ? local_hw_uefi(NULL, NULL, e) : 0;
}

void local_hw_use(const struct local_hw *hw, struct qemu_settings *s)
{
	s->memory_mib = (unsigned)hw->memory_mib;
	s->cpus = (unsigned)hw->cpus;
	s->cpu = hw->cpu[0] ? hw->cpu : NULL;
	s->bus = hw->bus;
}

/* As distributions have them, without Secure Boot: what is migrated isn't signed for it. */
int local_hw_uefi_kind(size_t *i, const char **ret_code, const char **ret_vars)
{
	static const char *const known[][2] = {
	    {"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	    {"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
	    {"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	    {"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
	};

	while (*i < ARRAY_SIZE(known)) {
		const char *const *kind = known[(*i)++];

		if (access(kind[0], R_OK) < 0 || access(kind[1], R_OK) < 0)
			continue;
		*ret_code = kind[0];
		*ret_vars = kind[1];
		return 1;
	}
	return 0;
}

int local_hw_uefi(const char **ret_code, const char **ret_vars, struct err *e)
{
	const char *code, *vars;
	size_t i = 0;

	if (!local_hw_uefi_kind(&i, &code, &vars))
		return err_set(e, -ENOENT, "this host has no UEFI firmware for machines (install the package 'ovmf')");
	if (ret_code)
		*ret_code = code;
	if (ret_vars)
		*ret_vars = vars;
	return 0;
}
