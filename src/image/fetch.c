/* SPDX-License-Identifier: Apache-2.0 */
/* apt as the source of packages. Downloads go to CACHE/partial, which one builder at a time may use
 * (flock on the cache directory), and are renamed into CACHE when their hash is right; what a
 * killed builder left in partial is removed by the next one. */
#include "image/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "base/limits.h"
#include "env/file.h"
#include "env/posix/posix.h"
#include "image/child.h"

#define PRINTED_MAX (4u * KLP_MIB) /* bytes of one answer of apt */
#define PARTIAL "partial"
#define LOCK_POLL_MS 200
#define KERNEL_SERIES "linux-image-6.1.0-"

const char *klp_fetch_arch(enum klp_arch arch)
{
    return arch == KLP_ARCH_AARCH64 ? "arm64" : "amd64";
}

/* ---- names and versions */

/* N of linux-image-6.1.0-N-cloud-ARCH, 0 = another package. */
static uint64_t kernel_number(const char *name, size_t size, enum klp_arch arch)
{
    char end[32];
    size_t head = strlen(KERNEL_SERIES);
    size_t tail = (size_t)snprintf(end, sizeof(end), "-cloud-%s", klp_fetch_arch(arch));
    uint64_t number = 0;
    if (size <= head + tail || memcmp(name, KERNEL_SERIES, head) != 0 ||
        memcmp(name + size - tail, end, tail) != 0 || size - head - tail > 9)
        return 0;
    return klp_parse_u64(name + head, size - head - tail, &number) ? number : 0;
}

void klp_fetch_kernel_choose(struct klp_bytes names, enum klp_arch arch, char *out, size_t capacity)
{
    uint64_t best = 0;
    out[0] = '\0';
    for (size_t at = 0; at < names.size;) {
        const char *line = (const char *)names.data + at;
        const char *end = memchr(line, '\n', names.size - at);
        size_t size = end == NULL ? names.size - at : (size_t)(end - line);
        uint64_t number = kernel_number(line, size, arch);
        if (number > best && size < capacity) {
            best = number;
            memcpy(out, line, size);
            out[size] = '\0';
        }
        at += size + 1;
    }
}

static kelpie_outcome lists_missing(enum klp_arch arch, struct kelpie_error **err)
{
    const char *name = klp_fetch_arch(arch);
    kelpie_outcome outcome = klp_fail(err, KELPIE_E_UNREACHABLE,
                                      "cannot find package '" KERNEL_SERIES
                                      "*-cloud-%s': apt's package lists do not have it",
                                      name);
    if (arch == klp_arch_host())
        klp_error_remedy_set(err, "make deps");
    else
        klp_error_remedy_set(err, "sudo dpkg --add-architecture %s && sudo apt-get update", name);
    return outcome;
}

kelpie_outcome klp_fetch_kernel_name(const struct kelpie_op *op, enum klp_arch arch, char *out,
                                     size_t capacity, struct kelpie_error **err)
{
    static const char *const argv[] = {"apt-cache", "pkgnames", KERNEL_SERIES, NULL};
    KLP_AUTO(buf) struct klp_buf names = KLP_BUF_INIT(PRINTED_MAX);
    KLP_TRY(klp_child_read(op, argv, &names, err));
    klp_fetch_kernel_choose(klp_buf_view(&names), arch, out, capacity);
    if (out[0] == '\0')
        return lists_missing(arch, err);
    return KLP_OK;
}

/* ---- what apt would download */

static bool file_name_is_good(const char *file, size_t size)
{
    static const char set[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+~_%-";
    return size > 4 && file[0] != '.' && strspn(file, set) >= size &&
           memcmp(file + size - 4, ".deb", 4) == 0;
}

/* The four fields of a line; false = it has others. */
static bool fields_split(const char *line, const char *out[3], size_t out_size[3])
{
    const char *at = strchr(line, '\'');
    if (at != line || (at = strchr(line + 1, '\'')) == NULL || at[1] != ' ')
        return false;
    at += 2;
    for (int i = 0; i < 3; i++) {
        out[i] = at;
        out_size[i] = strcspn(at, " ");
        at += out_size[i];
        at += i < 2 && *at == ' ';
    }
    return out_size[0] > 0 && out_size[1] > 0 && *at == '\0';
}

bool klp_fetch_line_parse(const char *line, struct klp_package *out, struct kelpie_error **err)
{
    const char *field[3];
    size_t size[3];
    struct klp_package package = {0};
    bool good = fields_split(line, field, size) && file_name_is_good(field[0], size[0]) &&
                size[0] < sizeof(package.file) && klp_parse_u64(field[1], size[1], &package.size) &&
                size[2] == strlen("SHA256:") + 2 * KLP_DIGEST_BYTES &&
                memcmp(field[2], "SHA256:", strlen("SHA256:")) == 0 &&
                klp_hex_decode(field[2] + strlen("SHA256:"), 2 * KLP_DIGEST_BYTES,
                               package.sha256.bytes, KLP_DIGEST_BYTES);
    size_t name_size = good ? strcspn(field[0], "_") : 0;
    if (!good || name_size == 0 || name_size >= sizeof(package.name))
        return klp_refuse(err, KELPIE_E_PROTOCOL, "cannot understand apt-get's answer '%.*s'", 120,
                          line);
    if (package.size > KLP_PACKAGE_SIZE_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot use package '%.*s': larger than %u bytes",
                          (int)name_size, field[0], KLP_PACKAGE_SIZE_MAX);
    memcpy(package.file, field[0], size[0]);
    memcpy(package.name, field[0], name_size);
    *out = package;
    return true;
}

/* "apt-get [more] download NAME:ARCH ...", or nothing when there is no name. */
struct command {
    char names[KLP_PACKAGES_MAX][128];
    const char *argv[KLP_PACKAGES_MAX + 8];
    size_t argc;
};

static void command_add(struct command *command, enum klp_arch arch, const char *name, size_t slot)
{
    snprintf(command->names[slot], sizeof(command->names[slot]), "%s:%s", name,
             klp_fetch_arch(arch));
    command->argv[command->argc++] = command->names[slot];
}

static struct klp_package *package_find(struct klp_package *packages, size_t count,
                                        const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(packages[i].name, name) == 0)
            return &packages[i];
    return NULL;
}

/* `text` ends with NUL and is taken apart. */
static bool lines_take(char *text, struct klp_package *packages, size_t count,
                       struct kelpie_error **err)
{
    for (char *line = text, *next; line != NULL; line = next) {
        struct klp_package parsed;
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        if (line[0] != '\'')
            continue; /* notes of apt, and the last, empty line */
        KLP_CHECK(klp_fetch_line_parse(line, &parsed, err));
        struct klp_package *package = package_find(packages, count, parsed.name);
        if (package != NULL)
            *package = parsed;
    }
    for (size_t i = 0; i < count; i++)
        if (packages[i].file[0] == '\0')
            return klp_refuse(err, KELPIE_E_UNREACHABLE,
                              "cannot find package '%s': apt knows no place to get it",
                              packages[i].name);
    return true;
}

kelpie_outcome klp_fetch_resolve(const struct kelpie_op *op, enum klp_arch arch,
                                 struct klp_package *packages, size_t count,
                                 struct kelpie_error **err)
{
    struct command command = {.argv = {"apt-get", "--print-uris", "download"}, .argc = 3};
    KLP_AUTO(buf) struct klp_buf printed = KLP_BUF_INIT(PRINTED_MAX);
    KLP_ASSERT(count > 0 && count <= KLP_PACKAGES_MAX);
    for (size_t i = 0; i < count; i++)
        command_add(&command, arch, packages[i].name, i);
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    kelpie_outcome outcome = klp_child_read(op, command.argv, &printed, &why);
    if (!kelpie_is_ok(outcome) && klp_error_code(&why) == KELPIE_E_IO) {
        outcome = klp_fail(err, KELPIE_E_UNREACHABLE, "cannot find the packages: %s",
                           kelpie_error_message(why));
        klp_error_remedy_set(err, "make deps");
        return outcome;
    }
    klp_error_move(err, &why);
    KLP_TRY(outcome);
    klp_buf_append_u8(&printed, 0);
    KLP_REQUIRE(klp_buf_check(&printed, "what apt-get printed", err));
    KLP_REQUIRE(lines_take((char *)printed.data, packages, count, err));
    return KLP_OK;
}

/* ---- the cache */

static bool digest_of(int fd, const char *name, struct klp_digest *out, struct kelpie_error **err)
{
    KLP_AUTO(sha256) struct klp_sha256 *hash = klp_sha256_create();
    KLP_AUTO(memory) uint8_t *piece = klp_mem_alloc(KLP_BLOCK_SIZE);
    for (off_t at = 0;;) {
        ssize_t got = pread(fd, piece, KLP_BLOCK_SIZE, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return klp_posix_refuse(err, errno, "cannot read '%s'", name);
        if (got == 0)
            break;
        klp_sha256_update(hash, piece, (size_t)got);
        at += got;
    }
    klp_sha256_final(hash, out);
    return true;
}

static bool digest_check(int fd, const struct klp_package *package, struct kelpie_error **err)
{
    struct klp_digest digest;
    KLP_CHECK(digest_of(fd, package->file, &digest, err));
    if (!klp_digest_equal(&digest, &package->sha256))
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot use '%s': its SHA-256 is not the one apt names", package->file);
    return true;
}

static bool package_open_at(int dir_fd, const struct klp_package *package, int *out_fd,
                            struct kelpie_error **err)
{
    struct stat info;
    int fd = openat(dir_fd, package->file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return klp_posix_refuse(err, errno, "cannot open '%s'", package->file);
    bool good =
        fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && (uint64_t)info.st_size == package->size;
    if (!good)
        good = klp_refuse(err, KELPIE_E_CORRUPT, "cannot use '%s': it has not the size apt names",
                          package->file);
    else
        good = digest_check(fd, package, err);
    if (!good) {
        close(fd);
        return false;
    }
    *out_fd = fd;
    return true;
}

bool klp_fetch_open(const char *cache_dir, const struct klp_package *package, int *out_fd,
                    struct kelpie_error **err)
{
    int dir_fd = open(cache_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return klp_posix_refuse(err, errno, "cannot open '%s'", cache_dir);
    bool opened = package_open_at(dir_fd, package, out_fd, err);
    close(dir_fd);
    return opened;
}

/* In the directory with the right bytes? One with wrong bytes is as good as none. */
static bool package_is_in(int dir_fd, const struct klp_package *package)
{
    int fd = -1;
    if (!package_open_at(dir_fd, package, &fd, NULL))
        return false;
    close(fd);
    return true;
}

static kelpie_outcome cache_lock(const struct kelpie_op *op, const struct klp_dir *dir,
                                 struct kelpie_error **err)
{
    while (flock(klp_dir_fd(dir), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return klp_posix_fail(err, errno, "cannot lock '%s'", klp_dir_path(dir));
        KLP_TRY(klp_sleep_until(op, klp_boot_ns(op->env) + LOCK_POLL_MS * KLP_MS, err));
    }
    return KLP_OK; /* unlocked when the directory is closed */
}

static kelpie_outcome download(const struct kelpie_op *op, const struct command *command,
                               const char *directory, struct kelpie_error **err)
{
    struct klp_child child = {.argv = command->argv, .directory = directory, .stdin_fd = -1};
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    kelpie_outcome outcome = klp_child_run(op, &child, &why);
    if (kelpie_is_ok(outcome))
        return outcome;
    if (klp_error_code(&why) != KELPIE_E_IO) {
        klp_error_move(err, &why);
        return outcome;
    }
    KLP_AUTO(buf) struct klp_buf names = KLP_BUF_INIT(KLP_ERROR_TEXT_MAX);
    for (size_t i = 0; i < KLP_PACKAGES_MAX && command->names[i][0] != '\0'; i++)
        klp_buf_append_format(&names, "%s%s", i == 0 ? "" : " ", command->names[i]);
    return klp_fail(err, KELPIE_E_UNREACHABLE, "cannot download packages '%s': %s",
                    klp_buf_text(&names), kelpie_error_message(why));
}

static bool packages_place(struct klp_dir *cache, struct klp_dir *partial,
                           const struct klp_package *const *missing, size_t count,
                           struct kelpie_error **err)
{
    for (size_t i = 0; i < count; i++) {
        int fd = -1;
        if (!package_open_at(klp_dir_fd(partial), missing[i], &fd, err))
            return klp_wrap_refusal(err, "cannot use the download of package '%s': %s",
                                    missing[i]->name, klp_error_why(err));
        close(fd);
        if (renameat(klp_dir_fd(partial), missing[i]->file, klp_dir_fd(cache), missing[i]->file) !=
            0)
            return klp_posix_refuse(err, errno, "cannot keep '%s'", missing[i]->file);
    }
    return true;
}

/* The directory's absolute path: a child's working directory. */
static bool directory_path(const struct klp_dir *dir, char out[PATH_MAX], struct kelpie_error **err)
{
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", klp_dir_fd(dir));
    ssize_t size = readlink(link, out, PATH_MAX - 1);
    if (size < 0)
        return klp_posix_refuse(err, errno, "cannot find '%s'", klp_dir_path(dir));
    out[size] = '\0';
    return true;
}

static kelpie_outcome missing_get(const struct kelpie_op *op, const struct command *command,
                                  struct klp_dir *cache, const struct klp_package *const *missing,
                                  size_t count, struct kelpie_error **err)
{
    char path[PATH_MAX];
    KLP_AUTO(dir) struct klp_dir *partial = NULL;
    KLP_REQUIRE(klp_dir_open_at(cache, PARTIAL, true, &partial, err));
    KLP_REQUIRE(directory_path(partial, path, err));
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    kelpie_outcome outcome = download(op, command, path, &why);
    if (kelpie_is_ok(outcome) && !packages_place(cache, partial, missing, count, &why))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    klp_error_move(err, &why);
    bool removed = klp_dir_remove_tree(cache, PARTIAL, NULL);
    (void)removed; /* else the next builder does it */
    return outcome;
}

kelpie_outcome klp_fetch_packages(const struct kelpie_op *op, enum klp_arch arch,
                                  const char *cache_dir, const struct klp_package *packages,
                                  size_t count, void (*say)(void *arg, const char *line),
                                  void *say_arg, struct kelpie_error **err)
{
    struct command command = {.argv = {"apt-get", "-q", "download"}, .argc = 3};
    const struct klp_package *missing[KLP_PACKAGES_MAX];
    size_t missing_count = 0;
    uint64_t missing_bytes = 0;
    KLP_AUTO(dir) struct klp_dir *cache = NULL;
    KLP_ASSERT(count <= KLP_PACKAGES_MAX);
    KLP_REQUIRE(klp_dir_open(op->env, cache_dir, true, &cache, err));
    KLP_TRY(cache_lock(op, cache, err));
    KLP_REQUIRE(klp_dir_remove_tree(cache, PARTIAL, err)); /* of a builder that was killed */
    for (size_t i = 0; i < count; i++) {
        if (package_is_in(klp_dir_fd(cache), &packages[i]))
            continue;
        command_add(&command, arch, packages[i].name, missing_count);
        missing[missing_count++] = &packages[i];
        missing_bytes += packages[i].size;
    }
    if (missing_count == 0)
        return KLP_OK;
    if (say != NULL) {
        char line[96];
        snprintf(line, sizeof(line), "downloading %zu packages, %.1f MiB", missing_count,
                 (double)missing_bytes / (double)KLP_MIB);
        say(say_arg, line);
    }
    return missing_get(op, &command, cache, missing, missing_count, err);
}
