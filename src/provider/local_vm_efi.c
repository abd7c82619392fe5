/* What an instance's UEFI remembers between boots. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "provider/local_vm_int.h"

#define EFI_VARS_MAX (16u << 20)
/* The header of the firmware volume and of the store in it: the same in all that were made from one template. */
#define EFI_HEADER 100

/* Of the kind that `vars` is the template of: 1, 0. */
static int efi_is_of(const char *text, size_t n, const char *vars, struct err *e)
{
	_cleanup_free_ char *template = NULL;
	size_t len;
	int r = io_read_file(vars, EFI_VARS_MAX, &template, &len, e);

	return r ?: n == len && len > EFI_HEADER && memcmp(text, template, EFI_HEADER) == 0;
}

/*
 * Which of the host's firmware knows these variables, as far as can be told: where they are damaged, the firmware
 * itself begins anew. 1; 0: there are none, or nobody's, which are put aside.
 */
static int efi_kind(const char *path, const char **code, struct err *e)
{
	char old[PATH_MAX + 8];
	_cleanup_free_ char *text = NULL;
	const char *known_code, *known_vars;
	struct err why = {0};
	size_t n = 0, i = 0;
	int r = local_read_file(path, EFI_VARS_MAX, &text, &n, &why);

	if (r == -ENOENT)
		return 0;
	if (r < 0 && r != -EFBIG)
		return err_set(e, r, "%s", why.msg);
	while (r == 0 && local_hw_uefi_kind(&i, &known_code, &known_vars)) {
		r = efi_is_of(text, n, known_vars, e);
		if (r > 0)
			*code = known_code;
	}
	if (r > 0 || (r < 0 && r != -EFBIG))
		return r;
	snprintf(old, sizeof(old), "%s.old", path);
	return rename(path, old) < 0 ? err_sys(e, "cannot put '%s' aside", path) : 0;
}

/* Lost or of no firmware that is here, it is made anew: the firmware then takes the loader of the fallback path,
 * \EFI\BOOT. */
int vm_efi(const struct vm *vm, char code[PATH_MAX], char vars[PATH_MAX], struct err *e)
{
	const char *known_code, *known_vars;
	_cleanup_free_ char *template = NULL;
	struct local_path path;
	size_t len;
	int r = local_hw_uefi(&known_code, &known_vars, e);

	r = r ?: vm_path(vm, &path, e, "efivars.fd");
	r = r ?: efi_kind(path.s, &known_code, e);
	if (r == 0) {
		r = io_read_file(known_vars, EFI_VARS_MAX, &template, &len, e);
		r = r ?: io_write_file_atomic(path.s, template, len, 0600, e);
	}
	r = r < 0 ? r : local_lend_file(vm->l, path.s, e);
	if (r < 0)
		return r;
	snprintf(code, PATH_MAX, "%s", known_code);
	snprintf(vars, PATH_MAX, "%s", path.s);
	return 0;
}
