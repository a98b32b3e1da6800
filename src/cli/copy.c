/* SPDX-License-Identifier: Apache-2.0 */
/* `kelpie cp`: A:PATH to DEST, SRC to A:PATH, `-` for a tar stream on this side. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "cli/copy.h"
#include "env/posix/posix.h"

#define PIECE_SIZE (64 * KLP_KIB)

struct place {
    char agent[KLP_NAME_SIZE]; /* "" = here */
    const char *path;
};

/* "./a:b" and "/a:b" are files here. */
static bool place_read(const char *word, struct place *out, struct kelpie_error **err)
{
    const char *colon = strchr(word, ':'), *slash = strchr(word, '/');
    *out = (struct place){.path = word};
    if (colon == NULL || word[0] == '.' || (slash != NULL && slash < colon))
        return true;
    if (colon - word > KLP_NAME_MAX)
        return klp_refuse(err, KELPIE_E_INVALID, "'%.*s' is no agent's name", 70, word);
    klp_format(out->agent, sizeof(out->agent), "%.*s", (int)(colon - word), word);
    KLP_CHECK(klp_name_check("agent", out->agent, err));
    out->path = colon + 1;
    if (out->path[0] == 0)
        return klp_refuse(err, KELPIE_E_INVALID, "'%s' names no path in the agent", word);
    return strlen(out->path) <= KLP_PATH_MAX ||
           klp_refuse(err, KELPIE_E_INVALID, "the path in the agent is too long");
}

static char *files_path(const char *agent, const char *path)
{
    struct klp_buf text = KLP_BUF_INIT(4 * KLP_PATH_MAX);
    klp_buf_append_format(&text, "/v1/agents/%s/files?path=", agent);
    klp_percent_append(&text, path);
    return klp_buf_take_text(&text);
}

/* The last part of a path; "." and ".." and "/" have none of their own. */
static char *leaf_of(const char *path)
{
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    char *leaf = klp_mem_string_n(path + start, end - start);
    if (leaf[0] != 0 && strcmp(leaf, ".") != 0 && strcmp(leaf, "..") != 0)
        return leaf;
    klp_mem_free(leaf);
    return NULL;
}

static char *folder_of(const char *path)
{
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/')
        end--;
    while (end > 0 && path[end - 1] != '/')
        end--;
    while (end > 1 && path[end - 1] == '/')
        end--;
    return end > 0 ? klp_mem_string_n(path, end) : klp_mem_string(".");
}

/* ---- out of the agent */

static kelpie_outcome answer_pass(struct http *http, struct copy_unpack *unpack,
                                  struct kelpie_error **err)
{
    uint8_t piece[PIECE_SIZE];
    for (;;) {
        size_t got;
        KLP_TRY(http_body_read(http, piece, sizeof(piece), &got, err));
        if (got == 0)
            break;
        KLP_REQUIRE(unpack != NULL ? copy_unpack_feed(unpack, piece, got, err)
                                   : cli_write(piece, got, err));
    }
    if (unpack != NULL)
        KLP_REQUIRE(copy_unpack_end(unpack, err));
    return KLP_OK;
}

/* An existing folder takes the thing under its own name; else DEST is its new name. */
static bool target_open(const char *to, int *out_fd, char **out_rename, struct kelpie_error **err)
{
    *out_rename = NULL;
    *out_fd = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*out_fd >= 0)
        return true;
    char *leaf = leaf_of(to), *folder = folder_of(to);
    bool named = leaf != NULL && to[strlen(to) - 1] != '/';
    *out_fd = named ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int error = errno;
    klp_mem_free(folder);
    if (*out_fd >= 0) {
        *out_rename = leaf;
        return true;
    }
    klp_mem_free(leaf);
    return klp_posix_refuse(err, error, "cannot open '%s'", to);
}

static kelpie_outcome download(struct cli *cli, const struct place *from, const char *to,
                               struct kelpie_error **err)
{
    bool piped = strcmp(to, "-") == 0;
    int dir_fd = -1;
    char *rename = NULL;
    struct http http;
    if (!piped)
        KLP_REQUIRE(target_open(to, &dir_fd, &rename, err));
    char *path = files_path(from->agent, from->path);
    struct http_request request = {.method = "GET", .path = path};
    kelpie_outcome outcome = cli_http_open(cli, &request, &http, err);
    klp_mem_free(path);
    if (kelpie_is_ok(outcome)) {
        struct copy_unpack *unpack = piped ? NULL : copy_unpack_create(dir_fd, rename);
        outcome = cli_answer_check(&http, err);
        if (kelpie_is_ok(outcome))
            outcome = answer_pass(&http, unpack, err);
        if (unpack != NULL)
            copy_unpack_destroy(unpack);
        http_finish(&http);
    }
    klp_mem_free(rename);
    if (dir_fd >= 0)
        close(dir_fd);
    return outcome;
}

/* ---- into the agent */

struct upload {
    struct http *http;
    bool gone; /* the daemon has answered already */
};

static bool upload_sink(void *arg, const void *data, size_t size, struct kelpie_error **err)
{
    struct upload *upload = arg;
    if (size == 0)
        return true;
    return kelpie_is_ok(http_body_write(upload->http, data, size, &upload->gone, err)) &&
           !upload->gone;
}

static bool stdin_pass(struct upload *upload, struct kelpie_error **err)
{
    uint8_t piece[PIECE_SIZE];
    for (;;) {
        ssize_t got = read(STDIN_FILENO, piece, sizeof(piece));
        if (got == 0)
            return true;
        if (got < 0 && errno != EINTR)
            return klp_posix_refuse(err, errno, "cannot read standard input");
        if (got > 0)
            KLP_CHECK(upload_sink(upload, piece, (size_t)got, err));
    }
}

static kelpie_outcome upload_end(struct upload *upload, struct kelpie_error **err)
{
    if (!upload->gone)
        KLP_TRY(http_body_write(upload->http, NULL, 0, &upload->gone, err));
    KLP_TRY(http_answer(upload->http, err));
    return cli_answer_check(upload->http, err);
}

/* One PUT of `from` (NULL = standard input) below `folder`, named `name`. Which node owns the agent
 * is asked first: a stream is not sent twice. */
static kelpie_outcome upload_once(struct cli *cli, const struct place *to, const char *folder,
                                  const char *from, const char *name, struct kelpie_error **err)
{
    struct http http;
    char *path = files_path(to->agent, folder);
    struct http_request request = {
        .method = "PUT", .path = path, .type = "application/x-tar", .chunked = true};
    kelpie_outcome outcome = cli_http_open_owner(cli, to->agent, &request, &http, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    struct upload upload = {.http = &http};
    bool fine =
        from == NULL ? stdin_pass(&upload, err) : copy_pack(from, name, upload_sink, &upload, err);
    if (fine || upload.gone)
        outcome = upload_end(&upload, err);
    else
        outcome = (kelpie_outcome){KELPIE_FAIL};
    http_finish(&http);
    return outcome;
}

/* A trailing '/' names a folder to copy into; else PATH is the new name, unless a folder stands
 * there and a file comes: then it goes into it, as everywhere. */
static kelpie_outcome upload(struct cli *cli, const char *from, const struct place *to,
                             struct kelpie_error **err)
{
    if (strcmp(from, "-") == 0)
        return upload_once(cli, to, to->path, NULL, NULL, err);
    struct stat info;
    if (stat(from, &info) != 0 && lstat(from, &info) != 0)
        return klp_posix_fail(err, errno, "cannot copy '%s'", from);
    char *own = leaf_of(from), *leaf = leaf_of(to->path), *folder = folder_of(to->path);
    bool into = leaf == NULL || to->path[strlen(to->path) - 1] == '/';
    kelpie_outcome outcome;
    if (own == NULL && (into || !S_ISDIR(info.st_mode))) {
        /* "cp . A:/x/": the folder's contents */
        outcome = upload_once(cli, to, to->path, from, ".", err);
    } else if (into) {
        outcome = upload_once(cli, to, to->path, from, own, err);
    } else {
        struct kelpie_error *error = NULL;
        outcome = upload_once(cli, to, folder, from, leaf, &error);
        if (!kelpie_is_ok(outcome) && own != NULL && S_ISREG(info.st_mode) &&
            kelpie_error_code(error) == KELPIE_E_IO) {
            struct kelpie_error *second = NULL;
            if (kelpie_is_ok(upload_once(cli, to, to->path, from, own, &second))) {
                klp_error_clear(&error);
                outcome = KLP_OK;
            }
            klp_error_clear(&second);
        }
        klp_error_move(err, &error);
    }
    klp_mem_free(own);
    klp_mem_free(leaf);
    klp_mem_free(folder);
    return outcome;
}

kelpie_outcome verb_cp(struct cli *cli, struct kelpie_error **err)
{
    struct place from, to;
    KLP_REQUIRE(place_read(cli->args.words[0], &from, err));
    KLP_REQUIRE(place_read(cli->args.words[1], &to, err));
    if ((from.agent[0] != 0) == (to.agent[0] != 0))
        return klp_fail(err, KELPIE_E_INVALID, "one of both places must be in an agent: A:PATH");
    return from.agent[0] != 0 ? download(cli, &from, to.path, err)
                              : upload(cli, from.path, &to, err);
}
