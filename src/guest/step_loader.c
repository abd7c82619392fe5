/*
 * UEFI starts a disk it doesn't remember by EFI/BOOT/BOOTX64.EFI. Where the system has its loader in a directory of its
 * own only, it is copied there, with what it loads in turn from beside itself.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/util.h"

#define LOADER_MAX (64u << 20)
#define FALLBACK   "EFI/BOOT/BOOTX64.EFI"

static const char *const esps[] = {"/boot/efi", "/efi"};

bool guest_has_fallback(const struct guest *g)
{
	for (size_t i = 0; i < ARRAY_SIZE(esps); i++) {
		char path[64];

		snprintf(path, sizeof(path), "%s/" FALLBACK, esps[i]);
		if (guest_exists(g, path))
			return true;
	}
	return false;
}

/* Shim first: it is what Secure Boot starts. */
static bool loader_in(const struct guest *g, const char *esp, char *out, size_t size)
{
	static const char *const names[] = {"shimx64.efi", "grubx64.efi", "systemd-bootx64.efi"};
	_cleanup_(guest_names_release) struct guest_names dirs = {0};
	char dir[256];

	snprintf(dir, sizeof(dir), "%s/EFI", esp);
	if (guest_list(g, dir, "", &dirs, NULL) < 0)
		return false;
	for (size_t k = 0; k < ARRAY_SIZE(names); k++)
		for (size_t i = 0; i < dirs.n; i++) {
			if ((size_t)snprintf(out, size, "%s/%s/%s", dir, dirs.v[i], names[k]) < size &&
			    guest_exists(g, out))
				return true;
		}
	return false;
}

bool guest_find_loader(const struct guest *g, char *out, size_t size)
{
	for (size_t i = 0; i < ARRAY_SIZE(esps); i++)
		if (loader_in(g, esps[i], out, size))
			return true;
	return false;
}

static int loader_copy(struct guest *g, struct guest_result *r, const char *from, const char *to, struct err *e)
{
	_cleanup_close_ int in = guest_openat(g, from, O_RDONLY | O_NONBLOCK, 0);
	_cleanup_free_ char *data = NULL;
	struct stat st;
	ssize_t n;

	if (in < 0 || fstat(in, &st) < 0)
		return err_set(e, in < 0 ? in : -errno, "cannot open '%s' in the copy", from);
	if (!S_ISREG(st.st_mode) || st.st_size > LOADER_MAX)
		return err_set(e, -EFBIG, "'%s' in the copy is no loader", from);
	data = malloc((size_t)st.st_size + 1);
	if (!data)
		return err_nomem(e);
	n = io_read_full(in, data, (size_t)st.st_size);
	if (n < 0)
		return err_set(e, (int)n, "cannot read '%s' in the copy", from);
	return guest_write(g, r, to, data, (size_t)n, 0755, e);
}

static int loader_run(struct guest *g, struct guest_result *r, struct err *e)
{
	char loader[256], beside[300], to[64];
	const char *esp = NULL, *name;
	int rc;

	for (size_t i = 0; i < ARRAY_SIZE(esps) && !esp; i++)
		esp = loader_in(g, esps[i], loader, sizeof(loader)) ? esps[i] : NULL;
	if (!esp || guest_has_fallback(g))
		return 0;
	snprintf(to, sizeof(to), "%s/" FALLBACK, esp);
	rc = loader_copy(g, r, loader, to, e);
	name = strrchr(loader, '/') + 1;
	snprintf(beside, sizeof(beside), "%.*sgrubx64.efi", (int)(name - loader), loader);
	snprintf(to, sizeof(to), "%s/EFI/BOOT/grubx64.efi", esp);
	if (rc == 0 && strcmp(name, "shimx64.efi") == 0 && guest_exists(g, beside) && !guest_exists(g, to))
		rc = loader_copy(g, r, beside, to, e);
	if (rc == 0)
		str_addf(&r->summary, "'%s' is now found without the firmware's memory, too", loader);
	return rc;
}

static bool loader_applies(struct guest *g)
{
	char path[256];

	return guest_find_loader(g, path, sizeof(path));
}

const struct guest_step guest_step_loader = {"fallback_loader", loader_applies, loader_run};
