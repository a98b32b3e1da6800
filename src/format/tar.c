/* SPDX-License-Identifier: Apache-2.0 */
/* Reading tar as steps: bytes in, events out (docs/formats/tar.md). ustar, pax and GNU's long
 * names, as tar programs write them today. Where two of those programs would read the same bytes in
 * two ways, the archive is refused. Opening files beneath a directory, and never through a link, is
 * the caller's. */
#include "format/tar.h"

#include <string.h>

#include "base/fmt.h"
#include "format/tar_inside.h"

#define GO_ON ((enum klp_tar_event)(-1)) /* a step made progress without an event */

enum tar_step {
    STEP_HEADER,
    STEP_META,    /* content of a pax header or a GNU long name */
    STEP_CONTENT, /* of a file, or of what is skipped */
    STEP_SPARSE,  /* blocks of GNU's hole tables */
    STEP_PADDING,
    STEP_TRAILER, /* after the end only zeros may follow */
    STEP_BAD
};

struct klp_tar_reader {
    enum tar_step step;
    char meta_type; /* 'x' 'g' 'L' 'K' while its content is collected, else 0 */
    bool is_skipped, seen_zero_block;
    size_t block_size; /* bytes collected of `block` */
    size_t padding;    /* bytes left */
    uint64_t left;     /* content bytes left */
    uint64_t budget;   /* content bytes all further entries may have */
    uint32_t entry_count;
    struct klp_buf meta;
    struct klp_tar_override over;
    struct klp_tar_entry entry;
    uint8_t block[KLP_TAR_BLOCK];
};

struct klp_tar_reader *klp_tar_reader_create(uint64_t content_bytes_max)
{
    struct klp_tar_reader *reader = KLP_NEW(struct klp_tar_reader);
    reader->budget = content_bytes_max;
    reader->meta = KLP_BUF_INIT(TAR_META_MAX);
    return reader;
}

void klp_tar_reader_destroy(struct klp_tar_reader *reader)
{
    if (reader == NULL)
        return;
    klp_buf_finish(&reader->meta);
    klp_mem_free(reader);
}

static bool bad(struct kelpie_error **err, const char *why)
{
    return klp_refuse(err, KELPIE_E_CORRUPT, "tar: %s", why);
}

static enum klp_tar_event bad_event(struct kelpie_error **err, const char *why)
{
    return bad(err, why) ? GO_ON : KLP_TAR_BAD;
}

/* ---- pieces of input */

static struct klp_bytes take(struct klp_bytes *input, uint64_t size_max)
{
    size_t size = input->size < size_max ? input->size : (size_t)size_max;
    struct klp_bytes taken = {input->data, size};
    if (size != 0) {
        input->data += size;
        input->size -= size;
    }
    return taken;
}

static bool all_zero(struct klp_bytes bytes)
{
    for (size_t i = 0; i < bytes.size; i++) {
        if (bytes.data[i] != 0)
            return false;
    }
    return true;
}

/* True when a whole block is there. */
static bool block_collect(struct klp_tar_reader *reader, struct klp_bytes *input)
{
    struct klp_bytes part = take(input, KLP_TAR_BLOCK - reader->block_size);
    if (part.size != 0)
        memcpy(reader->block + reader->block_size, part.data, part.size);
    reader->block_size += part.size;
    if (reader->block_size < KLP_TAR_BLOCK)
        return false;
    reader->block_size = 0;
    return true;
}

/* ---- header fields */

static struct klp_bytes text_field(const uint8_t *field, size_t capacity)
{
    size_t size = 0;
    while (size < capacity && field[size] != '\0')
        size++;
    return (struct klp_bytes){field, size};
}

/* GNU's form for what octal digits cannot hold: big-endian two's complement, first byte 0x80 or
 * 0xff. */
static bool binary_number(const uint8_t *field, size_t size, int64_t *out)
{
    uint8_t sign = field[0] == 0xff ? 0xff : 0;
    uint64_t value = sign != 0 ? UINT64_MAX : 0;
    if (field[0] != 0x80 && field[0] != 0xff)
        return false;
    for (size_t i = 1; i < size; i++) {
        if (size - i >= 8 && (size - i > 8 ? field[i] != sign : ((field[i] ^ sign) & 0x80) != 0))
            return false;
        value = value << 8 | field[i];
    }
    *out = (int64_t)value;
    return true;
}

/* Octal digits, spaces before, spaces and NULs behind; nothing at all is 0. */
static bool number_field(const uint8_t *field, size_t size, int64_t *out)
{
    uint64_t value = 0;
    size_t at = 0;
    if ((field[0] & 0x80) != 0)
        return binary_number(field, size, out);
    while (at < size && field[at] == ' ')
        at++;
    for (; at < size && field[at] >= '0' && field[at] <= '7'; at++)
        value = value << 3 | (uint64_t)(field[at] - '0'); /* 12 digits: 36 bits */
    for (; at < size; at++) {
        if (field[at] != ' ' && field[at] != '\0')
            return false;
    }
    *out = (int64_t)value;
    return true;
}

static bool header_check(const uint8_t *block, struct kelpie_error **err)
{
    int64_t sum;
    if (memcmp(block + TAR_MAGIC, TAR_POSIX_MAGIC, TAR_MAGIC_SIZE) != 0 &&
        memcmp(block + TAR_MAGIC, TAR_GNU_MAGIC, TAR_MAGIC_SIZE) != 0)
        return bad(err, "a header without the magic \"ustar\"");
    if (!number_field(block + TAR_SUM, TAR_NUMBER_SIZE, &sum) || sum != klp_tar_sum(block))
        return bad(err, "a header with the wrong checksum");
    return true;
}

/* ---- what stands before an entry: pax headers and GNU's long names */

static bool meta_begin(struct klp_tar_reader *reader, char type, int64_t size,
                       struct kelpie_error **err)
{
    const struct klp_tar_override *over = &reader->over;
    if (size < 0 || (uint64_t)size > TAR_META_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "tar: a header of more than %u bytes", TAR_META_MAX);
    if ((type == 'x' && over->is_pax) || (type == 'L' && over->has_path) ||
        (type == 'K' && over->has_target))
        return bad(err, "the same kind of header twice before one entry");
    klp_buf_clear(&reader->meta);
    reader->meta_type = type;
    reader->left = (uint64_t)size;
    reader->padding = klp_tar_padding((uint64_t)size);
    reader->step = STEP_META;
    return true;
}

/* One NUL ends it. */
static bool long_name_take(struct klp_bytes text, bool *has, char *out, struct kelpie_error **err)
{
    if (text.size == 0 || text.data[text.size - 1] != '\0')
        return bad(err, "a long name without its end");
    text.size--;
    *has = true;
    return klp_tar_target_copy(text, out, KELPIE_E_CORRUPT, err);
}

static bool meta_finish(struct klp_tar_reader *reader, struct kelpie_error **err)
{
    struct klp_tar_override *over = &reader->over;
    struct klp_bytes body = klp_buf_view(&reader->meta);
    char type = reader->meta_type;
    reader->meta_type = '\0';
    KLP_CHECK(klp_buf_check(&reader->meta, "tar: a header", err));
    if (type == 'L')
        return long_name_take(body, &over->has_path, over->path, err);
    if (type == 'K')
        return long_name_take(body, &over->has_target, over->target, err);
    over->is_pax = over->is_pax || type == 'x';
    return klp_tar_pax_decode(body, type == 'g', over, err);
}

static void override_forget(struct klp_tar_override *over)
{
    over->has_path = over->has_target = over->has_size = over->has_mtime = false;
    over->is_sparse = over->is_pax = false;
}

static bool override_pending(const struct klp_tar_override *over)
{
    return over->is_pax || over->has_path || over->has_target;
}

/* ---- entries */

static enum klp_tar_kind kind_of(char type)
{
    switch (type) {
    case '\0':
    case '0':
    case '7': /* "contiguous": a file */
        return KLP_TAR_FILE;
    case '1':
        return KLP_TAR_HARDLINK;
    case '2':
        return KLP_TAR_SYMLINK;
    case '5':
        return KLP_TAR_DIRECTORY;
    default:
        return KLP_TAR_OTHER;
    }
}

static bool path_take(struct klp_tar_reader *reader, struct kelpie_error **err)
{
    const uint8_t *block = reader->block;
    char joined[TAR_PREFIX_SIZE + 1 + TAR_NAME_SIZE];
    struct klp_bytes name = text_field(block + TAR_NAME, TAR_NAME_SIZE);
    struct klp_bytes prefix = text_field(block + TAR_PREFIX, TAR_PREFIX_SIZE);
    bool is_posix = memcmp(block + TAR_MAGIC, TAR_POSIX_MAGIC, TAR_MAGIC_SIZE) == 0;
    if (reader->over.has_path) {
        name = (struct klp_bytes){(const uint8_t *)reader->over.path, strlen(reader->over.path)};
    } else if (is_posix && prefix.size != 0) {
        memcpy(joined, prefix.data, prefix.size);
        joined[prefix.size] = '/';
        memcpy(joined + prefix.size + 1, name.data, name.size);
        name = (struct klp_bytes){(const uint8_t *)joined, prefix.size + 1 + name.size};
    }
    KLP_CHECK(klp_tar_path_normal(name, reader->entry.path, KELPIE_E_CORRUPT, err));
    if (reader->entry.kind == KLP_TAR_DIRECTORY || reader->entry.kind == KLP_TAR_OTHER)
        return true;
    /* Old programs take such a file for a directory. */
    if (name.data[name.size - 1] == '/' || strcmp(reader->entry.path, ".") == 0)
        return bad(err, "a file or link named as a directory");
    return true;
}

static bool target_take(struct klp_tar_reader *reader, struct kelpie_error **err)
{
    struct klp_bytes target = text_field(reader->block + TAR_LINK, TAR_NAME_SIZE);
    reader->entry.target[0] = '\0';
    if (reader->over.has_target)
        target =
            (struct klp_bytes){(const uint8_t *)reader->over.target, strlen(reader->over.target)};
    if (reader->entry.kind == KLP_TAR_SYMLINK)
        return klp_tar_target_copy(target, reader->entry.target, KELPIE_E_CORRUPT, err);
    if (reader->entry.kind == KLP_TAR_HARDLINK)
        return klp_tar_path_normal(target, reader->entry.target, KELPIE_E_CORRUPT, err);
    return true;
}

static bool numbers_take(struct klp_tar_reader *reader, char type, struct kelpie_error **err)
{
    struct klp_tar_entry *entry = &reader->entry;
    int64_t mode, size, mtime;
    if (!number_field(reader->block + TAR_MODE, TAR_NUMBER_SIZE, &mode) || mode < 0 ||
        !number_field(reader->block + TAR_SIZE, TAR_LONG_SIZE, &size) || size < 0 ||
        !number_field(reader->block + TAR_MTIME, TAR_LONG_SIZE, &mtime))
        return bad(err, "a header with a malformed number");
    entry->mode = (uint32_t)mode & 0777u;
    entry->size = reader->over.has_size ? reader->over.size : (uint64_t)size;
    entry->mtime = reader->over.has_mtime ? reader->over.mtime : mtime;
    bool has_content =
        entry->kind == KLP_TAR_FILE || (entry->kind == KLP_TAR_OTHER && (type < '3' || type > '6'));
    /* Some readers would skip such content, others take it for headers. */
    if (!has_content && entry->size != 0)
        return bad(err, "an entry that is no file has a size");
    if (entry->size > reader->budget)
        return klp_refuse(err, KELPIE_E_LIMIT, "tar: the contents are larger than allowed");
    return true;
}

static enum klp_tar_event entry_begin(struct klp_tar_reader *reader, char type,
                                      struct kelpie_error **err)
{
    struct klp_tar_entry *entry = &reader->entry;
    entry->kind = reader->over.is_sparse ? KLP_TAR_OTHER : kind_of(type);
    if (!path_take(reader, err) || !target_take(reader, err) || !numbers_take(reader, type, err))
        return KLP_TAR_BAD;
    reader->budget -= entry->size;
    reader->left = entry->size;
    reader->padding = klp_tar_padding(entry->size);
    reader->is_skipped = entry->kind == KLP_TAR_OTHER;
    bool has_table = type == 'S' && reader->block[TAR_GNU_EXTENDED] != 0;
    reader->step = has_table ? STEP_SPARSE : STEP_CONTENT;
    override_forget(&reader->over);
    return reader->is_skipped ? KLP_TAR_SKIPPED : KLP_TAR_ENTRY;
}

/* ---- steps */

static enum klp_tar_event zero_block(struct klp_tar_reader *reader, struct kelpie_error **err)
{
    if (override_pending(&reader->over))
        return bad_event(err, "it ends after a header that belongs to an entry");
    if (!reader->seen_zero_block) {
        reader->seen_zero_block = true;
        return GO_ON;
    }
    reader->step = STEP_TRAILER;
    return GO_ON;
}

static enum klp_tar_event header_step(struct klp_tar_reader *reader, struct klp_bytes *input,
                                      struct kelpie_error **err)
{
    int64_t size;
    if (!block_collect(reader, input))
        return KLP_TAR_NEED_MORE;
    if (all_zero((struct klp_bytes){reader->block, KLP_TAR_BLOCK}))
        return zero_block(reader, err);
    if (reader->seen_zero_block)
        return bad_event(err, "a single zero block between entries");
    if (!header_check(reader->block, err))
        return KLP_TAR_BAD;
    char type = (char)reader->block[TAR_TYPE];
    bool is_meta = type == 'x' || type == 'g' || type == 'L' || type == 'K';
    /* 'x', 'L' and 'K' are bounded by their entries. */
    if ((!is_meta || type == 'g') && reader->entry_count++ == KLP_TAR_ENTRIES_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "tar: more than %u entries", KLP_TAR_ENTRIES_MAX)
                   ? GO_ON
                   : KLP_TAR_BAD;
    if (!is_meta)
        return entry_begin(reader, type, err);
    if (!number_field(reader->block + TAR_SIZE, TAR_LONG_SIZE, &size))
        return bad_event(err, "a header with a malformed number");
    return meta_begin(reader, type, size, err) ? GO_ON : KLP_TAR_BAD;
}

static enum klp_tar_event content_step(struct klp_tar_reader *reader, struct klp_bytes *input,
                                       struct klp_bytes *content)
{
    if (reader->left == 0) {
        reader->step = STEP_PADDING;
        return GO_ON;
    }
    struct klp_bytes part = take(input, reader->left);
    if (part.size == 0)
        return KLP_TAR_NEED_MORE;
    reader->left -= part.size;
    if (reader->meta_type != '\0')
        klp_buf_append(&reader->meta, part.data, part.size);
    if (reader->meta_type != '\0' || reader->is_skipped)
        return GO_ON;
    *content = part;
    return KLP_TAR_CONTENT;
}

static enum klp_tar_event padding_step(struct klp_tar_reader *reader, struct klp_bytes *input,
                                       struct kelpie_error **err)
{
    struct klp_bytes part = take(input, reader->padding);
    reader->padding -= part.size;
    if (!all_zero(part))
        return bad_event(err, "the padding behind an entry is not zero");
    if (reader->padding != 0)
        return KLP_TAR_NEED_MORE;
    reader->step = STEP_HEADER;
    if (reader->meta_type != '\0')
        return meta_finish(reader, err) ? GO_ON : KLP_TAR_BAD;
    return reader->is_skipped ? GO_ON : KLP_TAR_ENTRY_END;
}

static enum klp_tar_event sparse_step(struct klp_tar_reader *reader, struct klp_bytes *input)
{
    if (!block_collect(reader, input))
        return KLP_TAR_NEED_MORE;
    if (reader->block[TAR_GNU_EXTENDED_NEXT] == 0)
        reader->step = STEP_CONTENT;
    return GO_ON;
}

static enum klp_tar_event trailer_step(struct klp_bytes *input, struct kelpie_error **err)
{
    if (!all_zero(take(input, UINT64_MAX)))
        return bad_event(err, "something follows its end");
    return KLP_TAR_END;
}

static enum klp_tar_event step(struct klp_tar_reader *reader, struct klp_bytes *input,
                               struct klp_bytes *content, struct kelpie_error **err)
{
    switch (reader->step) {
    case STEP_HEADER:
        return header_step(reader, input, err);
    case STEP_META:
    case STEP_CONTENT:
        return content_step(reader, input, content);
    case STEP_SPARSE:
        return sparse_step(reader, input);
    case STEP_PADDING:
        return padding_step(reader, input, err);
    case STEP_TRAILER:
        return trailer_step(input, err);
    case STEP_BAD:
        break;
    }
    return bad_event(err, "it was found damaged before");
}

enum klp_tar_event klp_tar_next(struct klp_tar_reader *reader, struct klp_bytes *input,
                                const struct klp_tar_entry **entry, struct klp_bytes *content,
                                struct kelpie_error **err)
{
    enum klp_tar_event event;
    do { /* each turn consumes input or leaves its step: linear */
        event = step(reader, input, content, err);
    } while (event == GO_ON);
    if (event == KLP_TAR_BAD)
        reader->step = STEP_BAD;
    if (event == KLP_TAR_ENTRY || event == KLP_TAR_SKIPPED)
        *entry = &reader->entry;
    return event;
}
