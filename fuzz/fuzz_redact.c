/* Text keeps its length and its lines, and only stars are new in it; what is done again changes nothing that matters;
 * and whatever stood before, a secret in a line of its own doesn't come through, in JSON as well. */
#include <stdlib.h>
#include <string.h>

#include "base/jsn.h"
#include "base/redact.h"
#include "base/str.h"
#include "base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const planted[] = {
    "\npassword=PLANTEDPLANTEDPLANTED\n",
    "\nAuthorization: Bearer PLANTEDPLANTEDPLANTED\n",
    "\nhttps://root:PLANTEDPLANTEDPLANTED@host/\n",
    "\n{\"psk\": \"PLANTEDPLANTEDPLANTED\"}\n",
    "\n-----BEGIN RSA PRIVATE KEY-----\nPLANTEDPLANTEDPLANTED\n-----END RSA PRIVATE KEY-----\n",
};

static void check_planted(const uint8_t *data, size_t size)
{
	_cleanup_(str_release) struct str b = {0};
	struct redact r = {0};

	str_add_mem(&b, data + 1, size - 1);
	str_add(&b, planted[data[0] % ARRAY_SIZE(planted)]);
	must(str_ok(&b));
	redact_text(&r, b.s, b.len);
	must(!memmem(b.s, b.len, "PLANTEDPLANTED", 14) || memmem(data, size, "PLANTEDPLANTED", 14));
}

static void check_json(const uint8_t *data, size_t size)
{
	_cleanup_json_ json_t *o = NULL, *clean = NULL;

	if (jsn_parse((const char *)data, size, 65536, &o, NULL) < 0)
		return;
	clean = redact_json(o);
	must(clean && json_object_size(clean) == json_object_size(o) && json_array_size(clean) == json_array_size(o));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *copy = NULL;
	struct redact r = {0};

	if (size < 2 || size > 65536)
		return 0;
	copy = malloc(size);
	must(copy);
	memcpy(copy, data, size);
	redact_text(&r, copy, size);
	for (size_t i = 0; i < size; i++)
		must(copy[i] == (char)data[i] || (copy[i] == '*' && data[i] != '\n'));
	check_planted(data, size);
	check_json(data, size);
	return 0;
}
