/* Mount points may have any name a user of the server gives them. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "track/track.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct track_mount *m = NULL;
	size_t n = 0;

	if (track_mountinfo_parse((const char *)data, size, &m, &n, NULL) < 0)
		return 0;
	for (size_t i = 0; i < n; i++)
		must(m[i].root && m[i].point && m[i].options && m[i].type && m[i].source && m[i].super &&
		     !strchr(m[i].type, '\n'));
	track_mountinfo_free(m, n);
	return 0;
}
