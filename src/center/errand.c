/* One attempt at one notice, as a transfer of libcurl's: what is sent, to whom, and whom never to. */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/pem.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "center/notify.h"
#include "version.h"

#define PASSWORD_MAX 1024u

void errand_free(struct errand *x)
{
	if (!x)
		return;
	curl_easy_cleanup(x->curl);
	curl_slist_free_all(x->list);
	str_release(&x->body);
	free(x);
}

static void errand_freep(struct errand **x)
{
	errand_free(*x);
}

static int add_line(struct errand *x, const char *line)
{
	struct curl_slist *l = line ? curl_slist_append(x->list, line) : NULL;

	if (!l)
		return -ENOMEM;
	x->list = l;
	return 0;
}

/* ---- where it goes ---- */

/* The four bytes of an IPv4 address, be it dressed as an IPv6 one. */
static bool four_of(const struct sockaddr *a, uint32_t *ret)
{
	if (a->sa_family == AF_INET) {
		*ret = ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr);
		return true;
	}
	if (a->sa_family == AF_INET6) {
		const struct in6_addr *six = &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr;

		if (!IN6_IS_ADDR_V4MAPPED(six))
			return false;
		*ret = (uint32_t)six->s6_addr[12] << 24 | (uint32_t)six->s6_addr[13] << 16 |
		       (uint32_t)six->s6_addr[14] << 8 | six->s6_addr[15];
		return true;
	}
	return false;
}

static bool is_own(const struct sockaddr *a)
{
	uint32_t four;

	if (four_of(a, &four))
		return four >> 24 == 127;
	return a->sa_family == AF_INET6 &&
	       IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

/* Link-local addresses have what a host keeps for itself (a cloud's metadata), and no receiver of ours. */
static bool is_link_local(const struct sockaddr *a)
{
	uint32_t four;

	if (four_of(a, &four))
		return four >> 16 == 0xa9fe;
	return a->sa_family == AF_INET6 &&
	       IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

/* The address a name has got is judged when it is about to be called: no answer of a resolver comes in between. */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
	struct errand *x = arg;

	if (is_link_local(&a->addr)) {
		snprintf(x->refused, sizeof(x->refused), "its address is link-local, such are not called");
		return CURL_SOCKET_BAD;
	}
	if (x->own && !is_own(&a->addr)) {
		snprintf(x->refused, sizeof(x->refused), "without TLS only this host itself is called");
		return CURL_SOCKET_BAD;
	}
	return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

/* ---- what is sent ---- */

/* Nobody reads what a web hook answers, only its status counts. */
static size_t drop(char *p, size_t size, size_t n, void *arg)
{
	return n;
}

static size_t send_body(char *p, size_t size, size_t n, void *arg)
{
	struct errand *x = arg;

	n = MIN(size * n, x->body.len - x->at);
	memcpy(p, x->body.s + x->at, n);
	x->at += n;
	return n;
}

static void set_common(struct engine *en, struct errand *x, const char *url, const char *protocol)
{
	long ms = (long)(en->s.notify_timeout * 1000);

	curl_easy_setopt(x->curl, CURLOPT_URL, url);
	curl_easy_setopt(x->curl, CURLOPT_PRIVATE, x);
	curl_easy_setopt(x->curl, CURLOPT_PROTOCOLS_STR, protocol);
	curl_easy_setopt(x->curl, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(x->curl, CURLOPT_PROXY, "");
	curl_easy_setopt(x->curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(x->curl, CURLOPT_QUICK_EXIT, 1L); /* a resolver that hangs holds nobody up */
	curl_easy_setopt(x->curl, CURLOPT_CONNECTTIMEOUT_MS, ms);
	curl_easy_setopt(x->curl, CURLOPT_TIMEOUT_MS, ms);
	curl_easy_setopt(x->curl, CURLOPT_FORBID_REUSE, 1L);
	curl_easy_setopt(x->curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	curl_easy_setopt(x->curl, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(x->curl, CURLOPT_SSL_VERIFYHOST, 2L);
	/* Beside those of the system, which are in a directory. */
	if (en->s.trust)
		curl_easy_setopt(x->curl, CURLOPT_CAINFO, en->s.trust);
	curl_easy_setopt(x->curl, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	curl_easy_setopt(x->curl, CURLOPT_OPENSOCKETDATA, x);
	curl_easy_setopt(x->curl, CURLOPT_WRITEFUNCTION, drop);
	curl_easy_setopt(x->curl, CURLOPT_ERRORBUFFER, x->detail);
}

static int make_webhook(struct engine *en, struct errand *x, const unsigned char key[WEBHOOK_KEY],
			const struct model_notice *notice, const struct model_subscription *sub, struct err *e)
{
	_cleanup_free_ char *body = jsn_text(notice->body), *id = str_printf("webhook-id: %s", notice->id),
			    *time = NULL, *signature = NULL;
	unsigned char secret[WEBHOOK_SECRET];
	char sum[WEBHOOK_SIGNATURE];
	int64_t now = (int64_t)id_now();
	int r;

	if (!body)
		return err_nomem(e);
	webhook_secret(key, notice->subscription, secret);
	r = webhook_sign(secret, notice->id, now, body, sum);
	OPENSSL_cleanse(secret, sizeof(secret));
	if (r < 0)
		return err_nomem(e);
	time = str_printf("webhook-timestamp: %lld", (long long)now);
	signature = str_printf("webhook-signature: %s", sum);
	str_add(&x->body, body);
	if (!str_ok(&x->body) || add_line(x, "Content-Type: application/json") < 0 || add_line(x, "Expect:") < 0 ||
	    add_line(x, id) < 0 || add_line(x, time) < 0 || add_line(x, signature) < 0)
		return err_nomem(e);
	x->own = str_starts(sub->target, "http://");
	set_common(en, x, sub->target, x->own ? "http" : "https");
	curl_easy_setopt(x->curl, CURLOPT_USERAGENT, "replantd/" REPLANT_VERSION);
	curl_easy_setopt(x->curl, CURLOPT_HTTPHEADER, x->list);
	curl_easy_setopt(x->curl, CURLOPT_POSTFIELDSIZE, (long)x->body.len);
	curl_easy_setopt(x->curl, CURLOPT_POSTFIELDS, x->body.s);
	return 0;
}

static int read_password(const char *path, char **ret, struct err *e)
{
	struct stat st;
	char *text = NULL;
	int r;

	if (stat(path, &st) < 0)
		return err_sys(e, "cannot use the mail server's password '%s'", path);
	if (st.st_mode & 0077)
		return err_set(e, -EACCES, "others can read the mail server's password '%s' (chmod 600)", path);
	r = io_read_file(path, PASSWORD_MAX, &text, NULL, e);
	if (r < 0)
		return r;
	text[strcspn(text, "\r\n")] = '\0';
	*ret = text;
	return 0;
}

static int parse_server(const char *url, struct model_url *ret, bool *ret_tls, struct err *e)
{
	int r;

	*ret_tls = str_starts(url, "smtps:");
	r = model_url_parse(url, *ret_tls ? "smtps" : "smtp", ret, e);
	if (r == 0 && *ret->path)
		r = err_set(e, -EINVAL, "nothing belongs behind the host and port");
	return r < 0 ? err_prefix(e, "mail server '%s'", url) : 0;
}

/* libcurl would only say so at the first call. */
static int check_trust(const char *path, struct err *e)
{
	_cleanup_fclose_ FILE *f = fopen(path, "rbe");
	X509 *x;

	if (!f)
		return err_sys(e, "cannot read the certificates '%s'", path);
	x = PEM_read_X509(f, NULL, NULL, NULL);
	if (!x)
		return err_set(e, -EINVAL, "'%s' has no certificate in PEM form", path);
	X509_free(x);
	return 0;
}

int errand_check_settings(const struct center_settings *s, struct err *e)
{
	_cleanup_free_ char *password = NULL;
	struct model_url u;
	bool tls;
	int r = s->trust ? check_trust(s->trust, e) : 0;

	if (r < 0)
		return r;
	if (!s->mail_server)
		return s->mail_from || s->mail_user || s->mail_password
			   ? err_set(e, -EINVAL, "there are settings of mail, but no mail server (give --mail-server)")
			   : 0;
	r = parse_server(s->mail_server, &u, &tls, e);
	if (r < 0)
		return r;
	if (!s->mail_from || !model_is_mail_address(s->mail_from, strlen(s->mail_from)))
		return err_set(e, -EINVAL, "'%s' can't be the sender of mail (give --mail-from name@host)",
			       s->mail_from ?: "");
	if (!s->mail_user != !s->mail_password)
		return err_set(e, -EINVAL, "the mail server's user and password belong together (give both or none)");
	return s->mail_password ? read_password(s->mail_password, &password, e) : 0;
}

static int add_recipients(struct errand *x, const char *s)
{
	while (*s) {
		size_t len = strcspn(s, ",");
		_cleanup_free_ char *one = str_printf("<%.*s>", (int)len, s);

		if (add_line(x, one) < 0)
			return -ENOMEM;
		s += len + (s[len] == ',');
	}
	return 0;
}

static int set_login(struct engine *en, struct errand *x, struct err *e)
{
	_cleanup_free_ char *password = NULL;
	int r;

	if (!en->s.mail_user)
		return 0;
	r = read_password(en->s.mail_password, &password, e);
	if (r < 0)
		return r;
	curl_easy_setopt(x->curl, CURLOPT_USERNAME, en->s.mail_user);
	curl_easy_setopt(x->curl, CURLOPT_PASSWORD, password);
	OPENSSL_cleanse(password, strlen(password));
	return 0;
}

static int make_mail(struct engine *en, struct errand *x, const struct model_notice *notice,
		     const struct model_subscription *sub, struct err *e)
{
	const char *to = sub->target + strlen("mailto:");
	_cleanup_free_ char *from = NULL;
	struct model_url u;
	bool tls;
	int r;

	if (!en->s.mail_server)
		return err_set(e, -ENOTSUP, "the center has no mail server any more");
	r = parse_server(en->s.mail_server, &u, &tls, e);
	if (r < 0)
		return r;
	from = str_printf("<%s>", en->s.mail_from);
	if (!from || mail_compose(notice, en->s.mail_from, to, id_now(), &x->body) < 0 || add_recipients(x, to) < 0)
		return err_nomem(e);
	x->mail = true;
	x->own = !tls && u.loopback;
	set_common(en, x, en->s.mail_server, tls ? "smtps" : "smtp");
	/* On this host itself TLS isn't needed, and a certificate for its own mail server nothing that hosts have. */
	curl_easy_setopt(x->curl, CURLOPT_USE_SSL, (long)(x->own ? CURLUSESSL_TRY : CURLUSESSL_ALL));
	if (x->own) {
		curl_easy_setopt(x->curl, CURLOPT_SSL_VERIFYPEER, 0L);
		curl_easy_setopt(x->curl, CURLOPT_SSL_VERIFYHOST, 0L);
	}
	curl_easy_setopt(x->curl, CURLOPT_MAIL_FROM, from);
	curl_easy_setopt(x->curl, CURLOPT_MAIL_RCPT, x->list);
	curl_easy_setopt(x->curl, CURLOPT_UPLOAD, 1L);
	curl_easy_setopt(x->curl, CURLOPT_READFUNCTION, send_body);
	curl_easy_setopt(x->curl, CURLOPT_READDATA, x);
	return set_login(en, x, e);
}

int errand_new(struct engine *en, const unsigned char key[WEBHOOK_KEY], const struct model_notice *notice,
	       const struct model_subscription *sub, struct errand **ret, struct err *e)
{
	_cleanup_(errand_freep) struct errand *x = calloc(1, sizeof(*x));
	int r;

	if (!x)
		return err_nomem(e);
	x->curl = curl_easy_init();
	if (!x->curl)
		return err_nomem(e);
	snprintf(x->notice, sizeof(x->notice), "%s", notice->id);
	snprintf(x->subscription, sizeof(x->subscription), "%s", notice->subscription);
	r = model_target_is_mail(sub->target) ? make_mail(en, x, notice, sub, e)
					      : make_webhook(en, x, key, notice, sub, e);
	if (r == 0)
		*ret = take_ptr(&x);
	return r;
}

int errand_result(struct errand *x, CURLcode code, struct err *e)
{
	long status = 0;

	if (code != CURLE_OK) {
		const char *why = *x->refused ? x->refused : *x->detail ? x->detail : curl_easy_strerror(code);

		str_utf8(x->detail);
		err_set(e, -EIO, "%s", why);
		return -1;
	}
	curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
	if (x->mail || (status >= 200 && status < 300))
		return 0;
	err_set(e, -EIO, "it answered with HTTP status %ld", status);
	return -1;
}
