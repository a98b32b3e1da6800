/* SPDX-License-Identifier: Apache-2.0 */
/* tar: one archive read whole and in pieces gives the same entries; written anew by us, they are
 * read as the same entries again, and writing those gives the same bytes. Broken checksums are
 * mended first, or hardly any mutated header would be looked at. */
#include "fuzz.h"

#include "format/tar.h"

#define CONTENT_MAX (64u * KLP_KIB)
#define SUM_AT 148u

static void sums_mend(uint8_t *bytes, size_t size)
{
    for (size_t at = 0; size - at >= KLP_TAR_BLOCK; at += KLP_TAR_BLOCK) {
        uint8_t *block = bytes + at;
        unsigned sum = 8 * ' ';
        if (memcmp(block + 257, "ustar", 5) != 0)
            continue;
        for (unsigned i = 0; i < KLP_TAR_BLOCK; i++)
            sum += i >= SUM_AT && i < SUM_AT + 8 ? 0 : block[i];
        for (int digit = 5; digit >= 0; digit--, sum >>= 3)
            block[SUM_AT + (unsigned)digit] = (uint8_t)('0' + (sum & 7));
        block[SUM_AT + 6] = '\0';
        block[SUM_AT + 7] = ' ';
    }
}

static void names_check(const struct klp_tar_entry *entry)
{
    size_t depth = 1;
    FUZZ_CHECK(entry->path[0] != '/' && entry->path[0] != '\0');
    FUZZ_CHECK(entry->mode <= 0777);
    for (const char *part = entry->path; *part != '\0'; part++) {
        bool begins = part == entry->path || part[-1] == '/';
        FUZZ_CHECK(
            !(begins && part[0] == '.' && part[1] == '.' && (part[2] == '/' || part[2] == '\0')));
        FUZZ_CHECK(!(part[0] == '/' && (part[1] == '/' || part[1] == '\0')));
        depth += *part == '/';
    }
    FUZZ_CHECK(depth <= KLP_TAR_DEPTH_MAX);
    bool is_link = entry->kind == KLP_TAR_SYMLINK || entry->kind == KLP_TAR_HARDLINK;
    FUZZ_CHECK((entry->target[0] != '\0') == is_link);
    FUZZ_CHECK(entry->kind == KLP_TAR_FILE || entry->kind == KLP_TAR_OTHER || entry->size == 0);
}

/* Appends what the archive says to `out`, as an archive. */
static enum klp_tar_event copy(struct klp_bytes bytes, size_t piece, struct klp_buf *out,
                               enum kelpie_code *out_code)
{
    static const uint8_t zeros[KLP_TAR_BLOCK];
    KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(CONTENT_MAX);
    enum klp_tar_event event = KLP_TAR_NEED_MORE;
    const struct klp_tar_entry *entry = NULL;
    struct kelpie_error *err = NULL;
    struct klp_bytes content = {0};
    uint64_t left = 0, total = 0;
    for (size_t at = 0; at < bytes.size && event != KLP_TAR_BAD; at += piece) {
        struct klp_bytes input = {bytes.data + at,
                                  bytes.size - at < piece ? bytes.size - at : piece};
        do {
            event = klp_tar_next(reader, &input, &entry, &content, &err);
            if (event == KLP_TAR_ENTRY || event == KLP_TAR_SKIPPED)
                names_check(entry);
            if (event == KLP_TAR_ENTRY) {
                FUZZ_CHECK(left == 0);
                left = entry->size;
                total += left;
                FUZZ_CHECK(total <= CONTENT_MAX);
                FUZZ_CHECK(klp_tar_header_append(out, entry, NULL));
            } else if (event == KLP_TAR_CONTENT) {
                FUZZ_CHECK(content.size != 0 && content.size <= left);
                left -= content.size;
                klp_buf_append(out, content.data, content.size);
            } else if (event == KLP_TAR_ENTRY_END) {
                FUZZ_CHECK(left == 0);
                klp_buf_append(out, zeros, klp_tar_padding(entry->size));
            }
        } while (event != KLP_TAR_NEED_MORE && event != KLP_TAR_END && event != KLP_TAR_BAD);
        FUZZ_CHECK(event == KLP_TAR_BAD || input.size == 0);
    }
    *out_code = KELPIE_E_NONE;
    if (event == KLP_TAR_BAD) {
        *out_code = kelpie_error_code(err);
        fuzz_refused(err, *out_code == KELPIE_E_LIMIT ? *out_code : KELPIE_E_CORRUPT);
    }
    if (event == KLP_TAR_END)
        klp_tar_end_append(out);
    return event;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct klp_buf mended KLP_AUTO(buf) = KLP_BUF_INIT(size + 1);
    struct klp_buf once KLP_AUTO(buf) = KLP_BUF_INIT(64 * KLP_MIB);
    struct klp_buf pieces KLP_AUTO(buf) = KLP_BUF_INIT(64 * KLP_MIB);
    struct klp_buf twice KLP_AUTO(buf) = KLP_BUF_INIT(64 * KLP_MIB);
    enum kelpie_code code, code_pieces;
    if (size == 0)
        return 0;
    size_t piece = 1 + data[size - 1] * 5u;
    klp_buf_append(&mended, data, size);
    sums_mend(mended.data, mended.size);
    enum klp_tar_event event = copy(klp_buf_view(&mended), size, &once, &code);
    FUZZ_CHECK(copy(klp_buf_view(&mended), piece, &pieces, &code_pieces) == event);
    FUZZ_CHECK(code == code_pieces);
    FUZZ_CHECK(klp_buf_check(&once, "archive", NULL) && klp_buf_check(&pieces, "archive", NULL));
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&pieces)));
    if (event != KLP_TAR_END)
        return 0;
    FUZZ_CHECK(copy(klp_buf_view(&once), piece, &twice, &code) == KLP_TAR_END);
    FUZZ_CHECK(fuzz_equal(klp_buf_view(&once), klp_buf_view(&twice)));
    return 0;
}
