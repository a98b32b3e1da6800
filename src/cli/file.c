/* SPDX-License-Identifier: Apache-2.0 */
/* `kelpie inspect FILE`: what a file says of itself, by the codec only; needs no daemon. Parts are
 * read in pieces, so that a file may be larger than memory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"
#include "format/klp1.h"

#define PIECE_SIZE (256 * KLP_KIB)

static bool read_exactly(int fd, const char *path, uint8_t *out, size_t size, size_t *out_got,
                         struct kelpie_error **err)
{
    *out_got = 0;
    while (*out_got < size) {
        ssize_t got = read(fd, out + *out_got, size - *out_got);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return klp_posix_refuse(err, errno, "cannot read '%s'", path);
        if (got == 0)
            break;
        *out_got += (size_t)got;
    }
    return true;
}

/* Hashes a part and keeps it when `kept` is not NULL and it is small enough to be understood. */
static bool part_read(int fd, const char *path, const char *name, uint64_t size,
                      struct klp_json *parts, struct klp_buf *kept, struct kelpie_error **err)
{
    char text[KLP_DIGEST_SIZE];
    struct klp_digest digest;
    struct klp_sha256 *hash = klp_sha256_create();
    uint8_t *piece = klp_mem_alloc(PIECE_SIZE);
    bool fine = true;
    for (uint64_t left = size; fine && left > 0;) {
        size_t want = left < PIECE_SIZE ? (size_t)left : PIECE_SIZE, got;
        fine = read_exactly(fd, path, piece, want, &got, err);
        if (fine && got < want)
            fine = klp_refuse(err, KELPIE_E_CORRUPT, "'%s' is cut off in its %s", path, name);
        if (!fine)
            break;
        klp_sha256_update(hash, piece, got);
        if (kept != NULL)
            klp_buf_append(kept, piece, got);
        left -= got;
    }
    klp_sha256_final(hash, &digest);
    klp_sha256_destroy(hash);
    klp_mem_free(piece);
    KLP_CHECK(fine);
    klp_digest_text(&digest, text);
    struct klp_json *part = klp_json_object();
    klp_json_set_u64(part, "size_bytes", size);
    klp_json_set_text(part, "sha256", text);
    klp_json_set(parts, name, part);
    return true;
}

static void metadata_set(struct klp_json *file, const struct klp_buf *kept)
{
    struct klp_json *metadata = NULL;
    if (!kept->over_limit && kept->size > 0 &&
        klp_json_parse(kept->data, kept->size, KLP_REST_DEPTH_MAX, &metadata, NULL))
        klp_json_set(file, "metadata", metadata);
    else
        klp_json_set_null(file, "metadata");
}

static bool klp1_read(int fd, const char *path, const struct klp1_lengths *lengths,
                      struct klp_json *file, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf kept =
        KLP_BUF_INIT(KLP1_METADATA_SIZE_MAX);
    uint8_t more;
    size_t got;
    KLP_AUTO(json) struct klp_json *parts = klp_json_object();
    KLP_CHECK(part_read(fd, path, "metadata", lengths->metadata, parts, &kept, err));
    KLP_CHECK(part_read(fd, path, "snapshot", lengths->snapshot, parts, NULL, err));
    KLP_CHECK(part_read(fd, path, "memory", lengths->memory, parts, NULL, err));
    KLP_CHECK(read_exactly(fd, path, &more, 1, &got, err));
    if (got != 0)
        return klp_refuse(err, KELPIE_E_CORRUPT, "'%s' goes on behind its end", path);
    klp_json_set_text(file, "format", "KLP1");
    klp_json_set_u64(file, "format_version", 1);
    metadata_set(file, &kept);
    klp_json_set(file, "parts", KLP_TAKE(&parts));
    return true;
}

static bool file_read(int fd, const char *path, struct klp_json *file, struct kelpie_error **err)
{
    uint8_t header[KLP1_HEADER_SIZE];
    struct klp1_lengths lengths;
    struct kelpie_error *why = NULL;
    struct stat info;
    size_t got;
    if (fstat(fd, &info) != 0)
        return klp_posix_refuse(err, errno, "cannot look at '%s'", path);
    if (S_ISDIR(info.st_mode))
        return klp_refuse(err, KELPIE_E_INVALID, "'%s' is a folder", path);
    KLP_CHECK(read_exactly(fd, path, header, sizeof(header), &got, err));
    if (got < 4 || memcmp(header, "KLP1", 4) != 0)
        return klp_refuse(err, KELPIE_E_CORRUPT, "'%s' is no Kelpie file", path);
    uint64_t total = S_ISREG(info.st_mode) ? (uint64_t)info.st_size : UINT64_MAX;
    if (klp1_header_decode(header, got, total, &lengths, &why))
        return klp1_read(fd, path, &lengths, file, err);
    KLP_IGNORE(
        klp_refuse(err, KELPIE_E_CORRUPT, "'%s' is damaged: %s", path, kelpie_error_message(why)));
    klp_error_clear(&why);
    return false;
}

kelpie_outcome cli_inspect_file(struct cli *cli, const char *path, struct kelpie_error **err)
{
    KLP_AUTO(json) struct klp_json *document = klp_json_object(), *file = klp_json_object();
    bool piped = strcmp(path, "-") == 0;
    int fd = piped ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    (void)cli; /* people get the same document */
    if (fd < 0) {
        kelpie_outcome outcome = klp_posix_fail(err, errno, "cannot open '%s'", path);
        klp_error_remedy_set(err, "ls -l %s", path);
        return outcome;
    }
    bool fine = file_read(fd, path, file, err);
    if (!piped)
        close(fd);
    KLP_REQUIRE(fine);
    klp_json_set_u64(document, "version", KLP_REST_VERSION);
    klp_json_set(document, "file", KLP_TAKE(&file));
    KLP_REQUIRE(cli_print_json(document, err));
    return KLP_OK;
}
