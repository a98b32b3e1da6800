/* SPDX-License-Identifier: Apache-2.0 */
/* The bodies of EXEC, MAIN_START and SETUP: argv, environment, folder; and paths. All lengths are
 * those of one frame, so a request never holds more than its body. */
#include "guest/guest.h"

#include <stdlib.h>
#include <string.h>

#include "base/fmt.h"

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define HOSTNAME_MAX 64 /* bytes; what the kernel takes */

static bool text_is_clean(struct klp_bytes bytes)
{
    return bytes.size == 0 || memchr(bytes.data, '\0', bytes.size) == NULL;
}

bool guest_text_copy(struct klp_bytes bytes, const char *what, char *out, size_t capacity,
                     struct kelpie_error **err)
{
    if (!text_is_clean(bytes))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot use the %s: it holds a NUL", what);
    if (bytes.size == 0 || bytes.size >= capacity)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "cannot use the %s: it has %zu bytes, not 1 to %zu", what, bytes.size,
                          capacity - 1);
    memcpy(out, bytes.data, bytes.size);
    out[bytes.size] = '\0';
    return true;
}

/* ---- parsing */

static bool count_fields(struct klp_bytes body, size_t *args, size_t *env,
                         struct kelpie_error **err)
{
    struct klp_field field;
    size_t at = 0;
    int got;
    *args = *env = 0;
    while ((got = klp_field_next(body, &at, &field, err)) > 0) {
        *args += field.tag == KLP_TAG_ARG;
        *env += field.tag == KLP_TAG_ENV;
    }
    if (got < 0)
        return false;
    if (*args > KLP_ARGV_MAX || *env > KLP_ENV_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT,
                          "cannot take %zu arguments and %zu variables: at most %u and %u", *args,
                          *env, KLP_ARGV_MAX, KLP_ENV_MAX);
    return true;
}

static bool strings_make(struct guest_strings *strings, size_t count, struct kelpie_error **err)
{
    strings->items = klp_mem_try((count + 1) * sizeof(char *));
    if (strings->items == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot take a request: no memory");
    return true;
}

/* Each field brings 8 bytes of header, so its NUL always finds room. */
static char *store_text(char **free_at, struct klp_bytes bytes)
{
    char *text = *free_at;
    if (bytes.size != 0)
        memcpy(text, bytes.data, bytes.size);
    text[bytes.size] = '\0';
    *free_at = text + bytes.size + 1;
    return text;
}

static bool env_is_valid(struct klp_bytes bytes)
{
    const uint8_t *equals = bytes.size != 0 ? memchr(bytes.data, '=', bytes.size) : NULL;
    return equals != NULL && equals != bytes.data;
}

static bool take_text(const struct klp_field *field, struct guest_request *out, char **free_at,
                      struct kelpie_error **err)
{
    bool is_env = field->tag == KLP_TAG_ENV;
    if (!text_is_clean(field->data))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot take a request: a NUL inside a text");
    if (is_env && !env_is_valid(field->data))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot take a variable: it is not NAME=VALUE");
    if (field->tag == KLP_TAG_HOSTNAME &&
        (field->data.size == 0 || field->data.size > HOSTNAME_MAX))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot take a host name of %zu bytes",
                          field->data.size);
    if (field->tag == KLP_TAG_WORKDIR && field->data.size >= KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot take a folder's name of %zu bytes",
                          field->data.size);
    char *text = store_text(free_at, field->data);
    if (is_env)
        out->env.items[out->env.count++] = text;
    else if (field->tag == KLP_TAG_ARG)
        out->argv.items[out->argv.count++] = text;
    else if (field->tag == KLP_TAG_HOSTNAME)
        out->hostname = text;
    else if (field->data.size > 0)
        out->workdir = text;
    return true;
}

static bool take_texts(struct klp_bytes body, struct guest_request *out, struct kelpie_error **err)
{
    struct klp_field field;
    char *free_at = out->storage;
    size_t at = 0;
    int got;
    while ((got = klp_field_next(body, &at, &field, err)) > 0) {
        bool is_text = field.tag == KLP_TAG_ARG || field.tag == KLP_TAG_ENV ||
                       field.tag == KLP_TAG_WORKDIR || field.tag == KLP_TAG_HOSTNAME;
        if (is_text)
            KLP_CHECK(take_text(&field, out, &free_at, err));
    }
    return got == 0;
}

static bool take_numbers(struct klp_bytes body, struct guest_request *out,
                         struct kelpie_error **err)
{
    uint64_t tty, rows, columns;
    KLP_CHECK(klp_field_u64(body, KLP_TAG_TIMEOUT_MS, 0, &out->timeout_ms, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_TTY, 0, &tty, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_ROWS, 24, &rows, err));
    KLP_CHECK(klp_field_u64(body, KLP_TAG_COLS, 80, &columns, err));
    if (rows > UINT16_MAX || columns > UINT16_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "cannot make a terminal of that size");
    out->tty = tty != 0;
    out->rows = (unsigned)rows;
    out->columns = (unsigned)columns;
    return true;
}

bool guest_request_parse(struct klp_bytes body, struct guest_request *out,
                         struct kelpie_error **err)
{
    size_t args, env;
    *out = (struct guest_request){0};
    KLP_CHECK(count_fields(body, &args, &env, err));
    out->storage = klp_mem_try(body.size + 1);
    bool fine = out->storage != NULL;
    if (!fine)
        fine = klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot take a request: no memory");
    fine = fine && strings_make(&out->argv, args, err) && strings_make(&out->env, env, err) &&
           take_texts(body, out, err) && take_numbers(body, out, err);
    if (!fine)
        guest_request_finish(out);
    return fine;
}

void guest_request_finish(struct guest_request *request)
{
    klp_mem_free(request->storage);
    klp_mem_free(request->argv.items);
    klp_mem_free(request->env.items);
    *request = (struct guest_request){0};
}

/* ---- what a program starts with */

static bool same_name(const char *a, const char *b)
{
    size_t size = strcspn(a, "=");
    return strncmp(a, b, size) == 0 && b[size] == '=';
}

static void environment_set(struct guest_strings *list, char *text)
{
    for (size_t i = 0; i < list->count; i++) {
        if (same_name(text, list->items[i])) {
            list->items[i] = text;
            return;
        }
    }
    list->items[list->count++] = text;
}

bool guest_environment(const struct guest *g, const struct guest_request *request,
                       struct guest_strings *out, struct kelpie_error **err)
{
    static char path[] = DEFAULT_PATH, home[] = "HOME=/root", term[] = "TERM=xterm";
    const struct guest_strings *own[] = {&g->defaults.env, &request->env};
    *out = (struct guest_strings){0};
    KLP_CHECK(strings_make(out, own[0]->count + own[1]->count + 3, err));
    environment_set(out, path);
    environment_set(out, home);
    if (request->tty)
        environment_set(out, term);
    for (size_t list = 0; list < KLP_COUNT(own); list++) {
        for (size_t i = 0; i < own[list]->count; i++)
            environment_set(out, own[list]->items[i]);
    }
    return true;
}

const char *guest_workdir(const struct guest *g, const struct guest_request *request)
{
    if (request->workdir != NULL)
        return request->workdir;
    return g->defaults.workdir != NULL ? g->defaults.workdir : "/";
}

bool guest_path_field(const struct guest *g, struct klp_bytes body, char *out,
                      struct kelpie_error **err)
{
    struct klp_bytes found;
    char given[KLP_PATH_MAX];
    if (!klp_field_find(body, KLP_TAG_PATH, &found))
        return klp_refuse(err, KELPIE_E_PROTOCOL, "cannot take a request for files: no path");
    KLP_CHECK(guest_text_copy(found, "path", given, sizeof(given), err));
    const char *base = g->defaults.workdir != NULL ? g->defaults.workdir : "/";
    size_t size = given[0] == '/' ? klp_format(out, KLP_PATH_MAX, "%s", given)
                                  : klp_format(out, KLP_PATH_MAX, "%s/%s", base, given);
    if (size >= KLP_PATH_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot use the path: it is longer than %u bytes",
                          KLP_PATH_MAX);
    return true;
}
