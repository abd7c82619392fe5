/* What the center says about itself: version, document, the agent's program. */
#include <fcntl.h>
#include <string.h>

#include "api/api_int.h"
#include "base/embed.h"
#include "base/util.h"
#include "version.h"

extern const struct embed_file api_documents[];

int api_get_version(struct api_request *q)
{
	return api_answer(q, 200, json_pack("{s:s, s:s}", "name", "replant", "version", REPLANT_VERSION));
}

int api_get_openapi(struct api_request *q)
{
	const struct embed_file *f = &api_documents[0];

	q->response = MHD_create_response_from_buffer(f->size, (void *)f->data, MHD_RESPMEM_PERSISTENT);
	if (!q->response)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	MHD_add_response_header(q->response, "Content-Type", "application/json");
	q->status = 200;
	return 0;
}

int api_get_agent(struct api_request *q)
{
	_cleanup_free_ char *path = str_printf("%s/replant-agent", q->api->s.programs);
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return api_refuse(q, 404, "not_found", NULL,
				  "this center has no agent program; install replant-agent "
				  "beside replantd");
	return api_answer_fd(q, fd, "application/octet-stream", "replant-agent");
}
