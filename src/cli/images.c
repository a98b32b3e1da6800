/* SPDX-License-Identifier: Apache-2.0 */
/* image build, ls, inspect, rm. Images are built here and sent to the daemon as a tar stream of
 * image.json, kernel and initramfs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"
#include "format/tar.h"
#include "image/image_build.h"

#define BUILD_TIMEOUT_MS (60ull * 60 * 1000)
#define PIECE_SIZE (256 * KLP_KIB)

static void say_line(void *arg, const char *line)
{
    cli_say(arg, "%s", line);
}

static char *cache_folder(const struct cli *cli)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg != NULL && xdg[0] == '/')
        return klp_text("%s/kelpie", xdg);
    return home != NULL && home[0] == '/' ? klp_text("%s/.cache/kelpie", home)
                                          : klp_text("%s/cache", cli->state);
}

/* The guest agent of that architecture: kelpie-guest-ARCH, or kelpie-guest for this machine's own.
 */
static char *guest_find(enum klp_arch arch)
{
    char *name = klp_text("kelpie-guest-%s", klp_arch_name(arch)), *path = cli_program_path(name);
    klp_mem_free(name);
    if (path == NULL && arch == klp_arch_host())
        path = cli_program_path("kelpie-guest");
    return path;
}

/* ---- sending */

static kelpie_outcome member_head(struct http *http, const char *name, uint64_t size,
                                  bool *out_gone, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf header = KLP_BUF_INIT(16 * KLP_KIB);
    struct klp_tar_entry *entry = KLP_NEW(struct klp_tar_entry);
    klp_text_copy(entry->path, sizeof(entry->path), name);
    entry->kind = KLP_TAR_FILE;
    entry->mode = 0644;
    entry->size = size;
    bool fine = klp_tar_header_append(&header, entry, err);
    klp_mem_free(entry);
    KLP_REQUIRE(fine);
    return http_body_write(http, header.data, header.size, out_gone, err);
}

static kelpie_outcome padding_send(struct http *http, uint64_t size, bool *out_gone,
                                   struct kelpie_error **err)
{
    static const uint8_t zeros[KLP_TAR_BLOCK];
    size_t padding = klp_tar_padding(size);
    return padding == 0 ? KLP_OK : http_body_write(http, zeros, padding, out_gone, err);
}

static kelpie_outcome file_send(struct http *http, const char *name, int fd, uint64_t size,
                                bool *out_gone, struct kelpie_error **err)
{
    uint8_t *piece = klp_mem_alloc(PIECE_SIZE);
    kelpie_outcome outcome = member_head(http, name, size, out_gone, err);
    for (uint64_t at = 0; kelpie_is_ok(outcome) && !*out_gone && at < size;) {
        size_t want = size - at < PIECE_SIZE ? (size_t)(size - at) : PIECE_SIZE;
        ssize_t got = pread(fd, piece, want, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            outcome = klp_posix_fail(err, got < 0 ? errno : EIO, "cannot read the %s", name);
            break;
        }
        outcome = http_body_write(http, piece, (size_t)got, out_gone, err);
        at += (uint64_t)got;
    }
    klp_mem_free(piece);
    return kelpie_is_ok(outcome) && !*out_gone ? padding_send(http, size, out_gone, err) : outcome;
}

static kelpie_outcome parts_send(struct http *http, const struct klp_image_parts *parts,
                                 struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(64 * KLP_KIB);
    bool gone = false;
    klp_image_encode(&parts->image, &text);
    KLP_REQUIRE(klp_buf_check(&text, "image.json", err));
    KLP_TRY(member_head(http, "image.json", text.size, &gone, err));
    if (!gone)
        KLP_TRY(http_body_write(http, text.data, text.size, &gone, err));
    if (!gone)
        KLP_TRY(padding_send(http, text.size, &gone, err));
    if (!gone)
        KLP_TRY(file_send(http, "kernel", parts->kernel_fd, parts->image.kernel.size, &gone, err));
    if (!gone)
        KLP_TRY(file_send(http, "initramfs", parts->initramfs_fd, parts->image.initramfs.size,
                          &gone, err));
    klp_buf_clear(&text);
    klp_tar_end_append(&text);
    if (!gone)
        KLP_TRY(http_body_write(http, text.data, text.size, &gone, err));
    return gone ? KLP_OK : http_body_write(http, NULL, 0, &gone, err);
}

static kelpie_outcome image_send(struct cli *cli, const struct klp_image_parts *parts,
                                 struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf body = KLP_BUF_INIT(KLP_REST_BODY_MAX);
    struct http http;
    char *path;
    KLP_REQUIRE(cli_path("images", parts->image.name, NULL, &path, err));
    struct http_request request = {
        .method = "PUT", .path = path, .type = "application/x-tar", .chunked = true};
    kelpie_outcome outcome = cli_http_open(cli, &request, &http, err);
    klp_mem_free(path);
    KLP_TRY(outcome);
    outcome = parts_send(&http, parts, err);
    if (kelpie_is_ok(outcome))
        outcome = http_answer(&http, err);
    if (kelpie_is_ok(outcome))
        outcome = cli_answer_check(&http, err);
    if (kelpie_is_ok(outcome))
        outcome = http_body_all(&http, &body, err);
    http_finish(&http);
    KLP_TRY(outcome);
    if (cli->args.json)
        KLP_REQUIRE(cli_write(body.data, body.size, err));
    else
        KLP_REQUIRE(cli_print_format(err, "%s\n", parts->image.name));
    return KLP_OK;
}

/* ---- building */

static kelpie_outcome build(struct cli *cli, const struct klp_image_build *wish,
                            struct kelpie_error **err)
{
    struct klp_env_posix_options options = {.program = "kelpie", .level = KLP_LOG_WARN};
    struct klp_image_parts parts = {.kernel_fd = -1, .initramfs_fd = -1};
    struct klp_env *env;
    KLP_REQUIRE(klp_env_posix_create(&options, &env, err));
    struct kelpie_op op =
        klp_op_plain(env, cli->args.timeout_ms != 0 ? cli->args.timeout_ms : BUILD_TIMEOUT_MS);
    kelpie_outcome outcome = klp_image_build(&op, wish, &parts, err);
    if (kelpie_is_ok(outcome)) {
        outcome = image_send(cli, &parts, err);
        close(parts.kernel_fd);
        close(parts.initramfs_fd);
    }
    klp_env_posix_destroy(env);
    return outcome;
}

static bool arch_flag(const struct cli *cli, enum klp_arch *out, struct kelpie_error **err)
{
    const char *text = cli_flag(cli, "arch");
    *out = text != NULL ? klp_arch_parse(text) : klp_arch_host();
    return *out != KLP_ARCH_NONE ||
           klp_refuse(err, KELPIE_E_INVALID, "--arch '%.*s' is neither x86_64 nor aarch64", 40,
                      text);
}

kelpie_outcome verb_image_build(struct cli *cli, struct kelpie_error **err)
{
    const char *name = cli->args.words[0], *recipe = cli_flag(cli, "recipe");
    enum klp_arch arch;
    int fd;
    KLP_REQUIRE(klp_name_check("image", name, err));
    KLP_REQUIRE(arch_flag(cli, &arch, err));
    if (recipe != NULL && strcmp(recipe, "base") != 0 && strcmp(recipe, "python") != 0)
        return klp_fail(err, KELPIE_E_INVALID, "--recipe '%.*s' is neither base nor python", 40,
                        recipe);
    /* Minutes of work are not begun for a daemon that is not there. */
    KLP_TRY(cli_connect(cli, NULL, &fd, err));
    close(fd);
    char *guest = guest_find(arch), *cache = cache_folder(cli);
    struct klp_image_build wish = {.name = name,
                                   .recipe = recipe,
                                   .arch = arch,
                                   .guest_path = guest,
                                   .cache_dir = cache,
                                   .say = say_line,
                                   .say_arg = cli};
    kelpie_outcome outcome =
        guest != NULL
            ? build(cli, &wish, err)
            : klp_fail(err, KELPIE_E_UNSUPPORTED,
                       "the guest agent kelpie-guest for %s was not found", klp_arch_name(arch));
    klp_mem_free(guest);
    klp_mem_free(cache);
    return outcome;
}

/* ---- the others */

kelpie_outcome verb_image_ls(struct cli *cli, struct kelpie_error **err)
{
    static const struct cli_column columns[] = {
        {"NAME", "name", CLI_TEXT},       {"ARCH", "arch", CLI_TEXT},
        {"VERSION", "version", CLI_TEXT}, {"SIZE", "size_bytes", CLI_SIZE},
        {"DIGEST", "digest", CLI_TEXT},
    };
    KLP_AUTO(json) struct klp_json *document = NULL;
    KLP_TRY(cli_call(cli, "GET", "/v1/images", NULL, &document, err));
    KLP_REQUIRE(cli_print_list(cli, document, "images", columns, KLP_COUNT(columns), err));
    return KLP_OK;
}

static kelpie_outcome of_arch(struct cli *cli,
                              kelpie_outcome (*each)(struct cli *, const char *, const char *,
                                                     struct kelpie_error **),
                              struct kelpie_error **err)
{
    enum klp_arch arch;
    char query[32] = "";
    KLP_REQUIRE(arch_flag(cli, &arch, err));
    if (cli_has(cli, "arch"))
        klp_format(query, sizeof(query), "?arch=%s", klp_arch_name(arch));
    return each(cli, "images", query, err);
}

kelpie_outcome verb_image_inspect(struct cli *cli, struct kelpie_error **err)
{
    return of_arch(cli, cli_inspect_each, err);
}

kelpie_outcome verb_image_rm(struct cli *cli, struct kelpie_error **err)
{
    return of_arch(cli, cli_remove_each, err);
}
