/*
 * Telling people outside: web hooks and mail. What is to be told becomes rows (notices) in the transaction of what it
 * is about; one thread sends them. Inside of the center.
 */
#pragma once

#include <curl/curl.h>
#include <stdatomic.h>

#include "base/str.h"
#include "center/engine.h"

#define NOTIFY_KEPT        500u /* notices of a subscription; the oldest go */
#define NOTIFY_PAUSES      5u
#define WEBHOOK_KEY        32u
#define WEBHOOK_SECRET     32u
#define WEBHOOK_SIGNATURE  48u /* "v1," and base64 of 32 bytes, with its NUL */
#define ERRAND_ANSWER_WAIT 2   /* seconds that a test is waited for before it's left to itself */

struct notify; /* deliver.c */

/* ---- webhook.c: signatures as Standard Webhooks has them ---- */

/* A subscription's secret: of the key and the id, so that the database has none. */
void webhook_secret(const unsigned char key[WEBHOOK_KEY], const char *subscription, unsigned char ret[WEBHOOK_SECRET]);
/* As people are given it: "whsec_" and base64; ret holds API_HOOK_SECRET. */
void webhook_secret_text(const unsigned char secret[WEBHOOK_SECRET], char *ret);
/* Of "ID.TIME.BODY". */
int webhook_sign(const unsigned char secret[WEBHOOK_SECRET], const char *id, int64_t time, const char *body,
		 char ret[WEBHOOK_SIGNATURE]);

/* ---- mail.c ---- */

/* A whole message, header and text. `to`: as in the target, "a@b,c@d". */
int mail_compose(const struct model_notice *notice, const char *from, const char *to, double now, struct str *ret);

/* ---- errand.c: one attempt at one notice ---- */

struct errand {
	struct errand *next;
	char notice[ID_MAX], subscription[ID_MAX];
	CURL *curl;
	struct curl_slist *list; /* header lines, or recipients */
	struct str body;
	size_t at;        /* of the body, that was sent */
	bool mail, own;   /* own: only to this host itself */
	char refused[96]; /* why its address isn't called, or "" */
	char detail[CURL_ERROR_SIZE];
};

/* Ready for curl_multi_add_handle(). */
int errand_new(struct engine *en, const unsigned char key[WEBHOOK_KEY], const struct model_notice *notice,
	       const struct model_subscription *sub, struct errand **ret, struct err *e);
void errand_free(struct errand *x);
/* 0, or -1 with why it didn't get through. */
int errand_result(struct errand *x, CURLcode code, struct err *e);
/* Are the settings such that mail can be sent, or say they nothing of it? */
int errand_check_settings(const struct center_settings *s, struct err *e);

/* ---- deliver.c ---- */

int notify_new(struct engine *en, struct err *e);
int notify_start(struct engine *en, struct err *e);
void notify_stop(struct engine *en);
void notify_free(struct engine *en);
/* New notices are in a transaction that isn't over yet. */
void notify_news(struct engine *en);
/* It is over, or time for another look. Any thread. */
void notify_wake(struct engine *en);
/* For the API. */
void notify_secret(void *arg, const char *subscription, char *ret);
void notify_changed(void *arg);
int notify_test(void *arg, const char *subscription, char *notice, struct api_fault *f);

/* ---- notify.c: what is told ---- */

/* Each within the transaction that changes the row. */
int notify_job(struct engine *en, enum model_notice_event event, const struct model_job *job, struct err *e);
int notify_source(struct engine *en, enum model_notice_event event, const struct model_source *src, struct err *e);
int notify_image(struct engine *en, enum model_notice_event event, const struct model_image *im, struct err *e);
/* A notice that isn't in the store yet. */
int notify_fill(struct model_notice *notice, const char *subscription, enum model_notice_event event, json_t *data,
		struct err *e);
/* Jobs that expire within a day, once each. */
void notify_expiring(struct engine *en);
