/* The center's answer to a sync. What is taken must be within the bounds its header promises. */
#include <stdlib.h>
#include <string.h>

#include "agent/agent_int.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_json_ json_t *o = NULL;
	struct task_reply r;

	if (jsn_parse((const char *)data, size, JSN_MAX_SIZE, &o, NULL) < 0 || task_reply_parse(o, &r, NULL) < 0)
		return 0;
	must(r.interval >= 1 && r.interval <= 3600);
	if (!r.has_task)
		return 0;
	must(id_is("run", r.task.run) && r.task.port > 0);
	must(r.task.connections >= 1 && r.task.connections <= STREAM_CONNECTIONS_MAX && r.task.compression <= 10);
	for (size_t i = 0; i < r.task.ndisks; i++)
		must(str_starts(r.task.disks[i], "/dev/") && !strstr(r.task.disks[i], ".."));
	return 0;
}
