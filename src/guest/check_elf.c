/* For which machine a program was made, from its header (System V ABI, chapter 4). */
#include "guest/guest_int.h"

#include <string.h>

#include "base/endian.h"
#include "base/util.h"

const char *guest_elf_machine(const uint8_t *p, size_t n)
{
	static const struct {
		uint16_t machine;
		uint8_t bits; /* as in the header: 1 is 32, 2 is 64 */
		const char *name;
	} known[] = {{62, 2, "x86_64"},   {62, 1, "x32"},   {3, 1, "i386"},   {183, 2, "arm64"},  {40, 1, "arm"},
		     {243, 2, "riscv64"}, {21, 2, "ppc64"}, {22, 2, "s390x"}, {258, 2, "loong64"}};
	uint16_t machine;

	if (n < 20 || memcmp(p, "\177ELF", 4) != 0 || (p[5] != 1 && p[5] != 2))
		return NULL;
	machine = p[5] == 1 ? get_le16(p + 18) : get_be16(p + 18);
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].machine == machine && known[i].bits == p[4])
			return known[i].name;
	return NULL;
}
