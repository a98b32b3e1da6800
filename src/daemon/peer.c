/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/peer.h"

#include <curl/curl.h>
#include <string.h>

#include "base/fmt.h"

void daemon_peer_init(void)
{
    KLP_ASSERT(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
}

static size_t body_take(char *data, size_t one, size_t size, void *out)
{
    struct klp_buf *buf = out;
    klp_buf_append(buf, data, one * size);
    return buf->over_limit || buf->no_memory ? 0 : size;
}

/* Called about once a second, and when bytes move: the op's cancel ends the call. */
static int progress(void *arg, curl_off_t total, curl_off_t now, curl_off_t upload_total,
                    curl_off_t upload)
{
    const struct kelpie_op *op = arg;
    (void)total;
    (void)now;
    (void)upload_total;
    (void)upload;
    return op->cancel != NULL && klp_cancel_is_raised(op->cancel);
}

static void options_set(CURL *curl, const struct kelpie_op *op, const char *method,
                        struct klp_bytes body, struct klp_buf *out_body)
{
    uint64_t left = klp_op_left_ms(op);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS,
                     left > 3600000 ? 3600000L
                     : left == 0    ? 1L
                                    : (long)left);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, 5000L);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, op);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, body_take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, out_body);
    if (body.size > 0) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, (const char *)body.data);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body.size);
    }
}

/* Errors after which the other side cannot have seen the request. */
static bool never_sent(CURLcode code)
{
    return code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST ||
           code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL ||
           code == CURLE_SSL_CONNECT_ERROR;
}

kelpie_outcome daemon_peer_call(const struct kelpie_op *op, const char *endpoint,
                                const char *method, const char *path, struct klp_bytes body,
                                int *out_status, struct klp_buf *out_body,
                                struct kelpie_error **err)
{
    KLP_TRY(klp_op_check(op, "asking a node", err));
    bool is_unix = strncmp(endpoint, "unix:", 5) == 0;
    CURL *curl = curl_easy_init();
    KLP_ASSERT(curl != NULL);
    char *url = klp_text("%s%s", is_unix ? "http://kelpie" : endpoint, path);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = curl_slist_append(headers, "Expect:");
    options_set(curl, op, method, body, out_body);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    if (is_unix)
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, endpoint + 5);
    CURLcode code = curl_easy_perform(curl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    klp_mem_free(url);
    if (code == CURLE_OK) {
        *out_status = (int)status;
        return KLP_OK;
    }
    if (never_sent(code))
        return klp_fail(err, KELPIE_E_UNREACHABLE, "cannot reach %s: %s", endpoint,
                        curl_easy_strerror(code));
    return klp_unknown(err, "no answer from %s: %s", endpoint, curl_easy_strerror(code));
}
