/* The check's items about who gets in: accounts, and the libraries that every login needs. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/util.h"

/* The n-th field between colons, from 0; false when there is none. */
static bool field(struct guest_span line, unsigned n, struct guest_span *ret)
{
	for (;; n--) {
		const char *colon = memchr(line.s, ':', line.n);
		size_t len = colon ? (size_t)(colon - line.s) : line.n;

		if (!n) {
			*ret = (struct guest_span){line.s, len};
			return true;
		}
		if (!colon)
			return false;
		line.s += len + 1;
		line.n -= len + 1;
	}
}

/* The line of that user; false when there is none. */
static bool line_of(struct guest_span text, struct guest_span name, struct guest_span *ret)
{
	struct guest_span line, first;

	while (guest_next_line(&text, &line))
		if (field(line, 0, &first) && first.n == name.n && memcmp(first.s, name.s, name.n) == 0) {
			*ret = line;
			return true;
		}
	return false;
}

#define ROOT ((struct guest_span){"root", 4})

/* One sentence for each kind of fault, not for each line. */
void guest_judge_accounts(struct guest_span passwd, struct guest_span shadow, struct guest_finding *f)
{
	struct guest_span rest = passwd, line, name, word, other;
	unsigned bad = 0, without = 0, more = 0;

	while (guest_next_line(&rest, &line)) {
		if (!line.n)
			continue;
		if (!field(line, 0, &name) || !name.n || !field(line, 6, &word) || field(line, 7, &word)) {
			bad++;
			continue;
		}
		if (field(line, 1, &word) && guest_span_is(word, "x") && !line_of(shadow, name, &other))
			without++;
		if (field(line, 2, &word) && guest_span_is(word, "0") && !guest_span_is(name, "root"))
			more++;
	}
	if (bad)
		guest_find(f, GUEST_WARNING, "%u lines of /etc/passwd are not right", bad);
	if (without)
		guest_find(f, GUEST_WARNING, "%u users of /etc/passwd have no line in /etc/shadow", without);
	if (more)
		guest_find(f, GUEST_WARNING, "%u users besides root have its rights (number 0)", more);
	if (f->level != GUEST_PASSED)
		guest_advise(f, "run 'pwck' on the source");
}

static int access_accounts(struct guest *g, struct guest_finding *f, struct err *e)
{
	_cleanup_free_ char *passwd = NULL, *shadow = NULL;
	_cleanup_close_ int fd = -1;
	size_t passwd_len = 0, shadow_len = 0;
	struct stat st;
	int r = guest_read(g, "/etc/passwd", &passwd, &passwd_len, e);

	r = r ?: guest_read(g, "/etc/shadow", &shadow, &shadow_len, e);
	if (r < 0 && r != -ENOENT && r != -EINVAL)
		return r; /* the system may well read it */
	if (r < 0) {
		guest_find(f, GUEST_CRITICAL, "%s: nobody can log in", e->msg);
		guest_advise(f, "put the file back on the source (there may be a copy named 'passwd-' or 'shadow-')");
		return 0;
	}
	guest_judge_accounts((struct guest_span){passwd, passwd_len}, (struct guest_span){shadow, shadow_len}, f);
	fd = guest_openat(g, "/etc/shadow", O_PATH, 0);
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_mode & (S_IROTH | S_IWOTH)) {
		guest_find(f, GUEST_WARNING, "everybody may read /etc/shadow (mode %04o)", st.st_mode & 07777u);
		guest_advise(f, "'chmod 0640 /etc/shadow' on the source");
	}
	guest_find(f, GUEST_PASSED, "/etc/passwd and /etc/shadow fit each other");
	return 0;
}

/* Has one of the groups a member that isn't root? */
static bool access_has_admin(struct guest *g)
{
	static const char *const groups[] = {"sudo", "wheel", "admin"};
	_cleanup_free_ char *text = NULL;
	struct guest_span line, members;
	size_t len;

	if (guest_read(g, "/etc/group", &text, &len, NULL) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(groups); i++)
		if (line_of((struct guest_span){text, len}, (struct guest_span){groups[i], strlen(groups[i])}, &line) &&
		    field(line, 3, &members) && members.n && !guest_span_is(members, "root"))
			return true;
	return false;
}

static void access_password(struct guest *g, struct guest_finding *f)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span line, word;
	size_t len = 0;

	if (guest_read(g, "/etc/shadow", &text, &len, NULL) < 0 ||
	    !line_of((struct guest_span){text, len}, ROOT, &line) || !field(line, 1, &word))
		return; /* the item on accounts says so */
	if (!word.n) {
		guest_find(f, GUEST_WARNING, "root has no password: whoever gets at the console is root");
		guest_advise(f, "set one on the source ('passwd root'), or lock it ('passwd -l root')");
		return;
	}
	f->value = json_string(*word.s == '!' || *word.s == '*' ? "locked" : "password");
	if ((*word.s == '!' || *word.s == '*') && !access_has_admin(g) &&
	    !guest_exists(g, "/root/.ssh/authorized_keys")) {
		guest_find(f, GUEST_WARNING, "root is locked, has no SSH key, and nobody may use sudo");
		guest_advise(f, "give root a password, or a user the right to use sudo, on the source");
	}
}

static int access_root(struct guest *g, struct guest_finding *f, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span line, word;
	size_t len = 0;
	int r = guest_read(g, "/etc/passwd", &text, &len, e);

	if (r < 0)
		return r;
	if (!line_of((struct guest_span){text, len}, ROOT, &line) || !field(line, 2, &word) ||
	    !guest_span_is(word, "0")) {
		guest_find(f, GUEST_CRITICAL, "there is no user root with the number 0 in /etc/passwd");
		guest_advise(f, "repair the file on the source ('pwck')");
		return 0;
	}
	if (field(line, 6, &word) && word.n >= 7 &&
	    (memcmp(word.s + word.n - 7, "nologin", 7) == 0 || memcmp(word.s + word.n - 5, "false", 5) == 0)) {
		guest_find(f, GUEST_WARNING, "root has no shell ('%.*s')", (int)MIN(word.n, (size_t)100), word.s);
		guest_advise(f, "give it one on the source: 'usermod -s /bin/bash root'");
	}
	access_password(g, f);
	guest_find(f, GUEST_PASSED, "somebody can become root");
	return 0;
}

/* ---- /lib and its siblings ---- */

static int access_libraries(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const char *const dirs[] = {"lib", "lib64", "bin", "sbin"};
	const char *machine = guest_machine(g);
	bool x86_64 = machine && strcmp(machine, "x86_64") == 0;
	char target[PATH_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		char path[16];
		ssize_t n;
		int fd;

		snprintf(path, sizeof(path), "/%s", dirs[i]);
		fd = guest_openat(g, path, O_PATH | O_NOFOLLOW, 0);
		n = fd < 0 ? -1 : readlinkat(fd, "", target, sizeof(target) - 1);
		if (fd >= 0)
			close(fd);
		if (n >= 0)
			target[n] = '\0';
		if (n > 0 && *target == '/') {
			guest_find(f, GUEST_WARNING,
				   "'%s' is a link to '%.200s', which isn't relative: mounted elsewhere "
				   "it leads out of the image",
				   path, target);
			guest_advise(f, "make it relative on the source: 'ln -sfn %.200s %s'", target + 1, path);
		}
		/* Only 64-bit systems of that kind have one. */
		if (!guest_exists(g, path) && (fd >= 0 || strcmp(dirs[i], "lib64") != 0 || x86_64)) {
			guest_find(f, GUEST_CRITICAL, "'%s' %s: no program starts", path,
				   fd >= 0 ? "leads nowhere" : "is missing");
			guest_advise(f, "put it back on the source");
		}
	}
	guest_find(f, GUEST_PASSED, "the directories of libraries and programs are in place");
	return 0;
}

const struct guest_check guest_checks_access[] = {
    {"root_account", "access", false, NULL, access_root},
    {"accounts", "access", false, NULL, access_accounts},
    {"lib_links", "access", false, NULL, access_libraries},
    {0},
};
