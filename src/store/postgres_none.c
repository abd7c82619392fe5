/* Instead of postgres.c where libpq was missing. */
#include <errno.h>

#include "base/err.h"
#include "store/store.h"

static int missing(struct err *e)
{
	return err_set(e, -ENOSYS,
		       "this program was built without PostgreSQL; install libpq's headers and build it again");
}

int store_check_postgres(const char *conninfo, bool *ret_password, struct err *e)
{
	return missing(e);
}

int store_open_postgres(const char *conninfo, struct store **ret, struct err *e)
{
	return missing(e);
}
