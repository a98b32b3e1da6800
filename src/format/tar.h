/* SPDX-License-Identifier: Apache-2.0 */
/* tar (ustar, with pax path/linkpath/size records on reading), as steps: bytes in, events out, no
 * I/O. Only directories, regular files, symlinks and hard links come out; all else is reported as
 * SKIPPED. Names are checked here (relative after stripping leading "/", no "..", no NUL, <= 4096
 * bytes, depth <= 128); whoever writes files must still open them beneath a directory descriptor.
 */
#ifndef KLP_FORMAT_TAR_H
#define KLP_FORMAT_TAR_H

#include "base/buf.h"
#include "base/limits.h"

#define KLP_TAR_BLOCK 512u
#define KLP_TAR_ENTRIES_MAX 1000000u
#define KLP_TAR_DEPTH_MAX 128

enum klp_tar_kind {
    KLP_TAR_FILE,
    KLP_TAR_DIRECTORY,
    KLP_TAR_SYMLINK,
    KLP_TAR_HARDLINK,
    KLP_TAR_OTHER
};

struct klp_tar_entry {
    char path[KLP_PATH_MAX + 1];
    char target[KLP_PATH_MAX + 1]; /* of a link */
    enum klp_tar_kind kind;
    uint32_t mode; /* & 0777 */
    uint64_t size; /* bytes of content that follow (files only) */
    int64_t mtime; /* seconds */
};

/* Appends header blocks (a pax header too when path or size need it). */
KELPIE_MUST_USE bool klp_tar_header_append(struct klp_buf *out, const struct klp_tar_entry *entry,
                                           struct kelpie_error **err);
/* Zero bytes that must follow `size` bytes of content. */
size_t klp_tar_padding(uint64_t size);
/* The two zero blocks at the end. */
void klp_tar_end_append(struct klp_buf *out);

enum klp_tar_event {
    KLP_TAR_NEED_MORE,
    KLP_TAR_ENTRY,
    KLP_TAR_CONTENT,
    KLP_TAR_ENTRY_END,
    KLP_TAR_SKIPPED,
    KLP_TAR_END,
    KLP_TAR_BAD
};

struct klp_tar_reader; /* bounded memory; entries, depth and total content bytes are limited */
struct klp_tar_reader *klp_tar_reader_create(uint64_t content_bytes_max);
void klp_tar_reader_destroy(struct klp_tar_reader *reader);
/* Feed all of *input (consumed from its front); returns the next event. ENTRY: *entry is valid
 * until the next call; each ENTRY ends in ENTRY_END, a SKIPPED one has nothing more. CONTENT:
 * *content is a slice of the input just consumed. NEED_MORE and END: all of *input was consumed;
 * after END only zeros may come, and END again. An archive whose bytes run out before END is cut
 * off. BAD: *err is CORRUPT or LIMIT, and the reader is finished. */
enum klp_tar_event klp_tar_next(struct klp_tar_reader *reader, struct klp_bytes *input,
                                const struct klp_tar_entry **entry, struct klp_bytes *content,
                                struct kelpie_error **err);

KLP_AUTO_DEFINE(tar_reader, struct klp_tar_reader *, klp_tar_reader_destroy)

#endif
