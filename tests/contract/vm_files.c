/* SPDX-License-Identifier: Apache-2.0 */
/* Files in and out of a guest, as tar streams. */
#include "contract/vm_inside.h"

#include "format/tar.h"

#define FILE_BYTES (300 * 1024) /* more than the credit of a channel */

struct stream { /* what is put, or was got */
    struct klp_buf bytes;
    size_t at;
};

static size_t stream_give(void *arg, void *out, size_t capacity)
{
    struct stream *stream = arg;
    size_t left = stream->bytes.size - stream->at, size = left < capacity ? left : capacity;
    if (size > 0)
        memcpy(out, stream->bytes.data + stream->at, size);
    stream->at += size;
    return size;
}

static bool stream_take(void *arg, const void *data, size_t size)
{
    struct stream *stream = arg;
    klp_buf_append(&stream->bytes, data, size);
    return true;
}

static uint8_t file_byte(size_t at)
{
    return (uint8_t)(at * 13 + at / 511);
}

static void entry_add(struct klp_buf *tar, enum klp_tar_kind kind, const char *path, size_t size)
{
    struct klp_tar_entry *entry = klp_mem_alloc(sizeof(*entry));
    *entry = (struct klp_tar_entry){.kind = kind, .mode = 0750, .size = size, .mtime = 1700000000};
    klp_text_copy(entry->path, sizeof(entry->path), path);
    CONTRACT_TRUE(klp_tar_header_append(tar, entry, &err_));
    klp_mem_free(entry);
    for (size_t i = 0; i < size; i++)
        klp_buf_append_u8(tar, file_byte(i));
    for (size_t i = klp_tar_padding(size); i > 0; i--)
        klp_buf_append_u8(tar, 0);
}

static void put(struct kelpie_vm *vm, const char *where)
{
    struct stream stream = {.bytes = KLP_BUF_INIT(KLP_MIB)};
    entry_add(&stream.bytes, KLP_TAR_DIRECTORY, "folder", 0);
    entry_add(&stream.bytes, KLP_TAR_FILE, "folder/file", FILE_BYTES);
    entry_add(&stream.bytes, KLP_TAR_FILE, "folder/empty", 0);
    klp_tar_end_append(&stream.bytes);
    CONTRACT_OK(kelpie_vm_put(&vm_op, vm, where, stream_give, &stream, &err_));
    klp_buf_finish(&stream.bytes);
}

/* Reads the archive: `content` gets that file's bytes; true when it was there. */
static bool tar_find(const struct klp_buf *tar, const char *path, struct klp_buf *content)
{
    KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(8 * KLP_MIB);
    struct klp_bytes input = klp_buf_view(tar), piece;
    const struct klp_tar_entry *entry;
    bool found = false, inside = false;
    for (;;) {
        switch (klp_tar_next(reader, &input, &entry, &piece, NULL)) {
        case KLP_TAR_ENTRY:
            inside = strcmp(entry->path, path) == 0;
            found = found || inside;
            break;
        case KLP_TAR_CONTENT:
            if (inside)
                klp_buf_append(content, piece.data, piece.size);
            break;
        case KLP_TAR_END:
            return found;
        case KLP_TAR_BAD:
        case KLP_TAR_NEED_MORE:
            fail_msg("the guest's archive is damaged or cut off");
            return false;
        default:
            break;
        }
    }
}

static void assert_content(const struct klp_buf *content)
{
    assert_int_equal(content->size, FILE_BYTES);
    for (size_t i = 0; i < FILE_BYTES; i++)
        if (content->data[i] != file_byte(i))
            fail_msg("byte %zu of the file is wrong", i);
}

static void test_contract_vm__files_come_back(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    struct stream got = {.bytes = KLP_BUF_INIT(4 * KLP_MIB)};
    KLP_AUTO(buf) struct klp_buf content = KLP_BUF_INIT(KLP_MIB), empty = KLP_BUF_INIT(KLP_MIB);
    put(vm, "/tmp");
    CONTRACT_OK(kelpie_vm_get(&vm_op, vm, "/tmp/folder", stream_take, &got, &err_));
    assert_true(tar_find(&got.bytes, "folder/file", &content));
    assert_content(&content);
    assert_true(tar_find(&got.bytes, "folder/empty", &empty));
    assert_int_equal(empty.size, 0);
    klp_buf_finish(&got.bytes);
}

static void test_contract_vm__one_file_comes_back(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    struct stream got = {.bytes = KLP_BUF_INIT(4 * KLP_MIB)};
    KLP_AUTO(buf) struct klp_buf content = KLP_BUF_INIT(KLP_MIB);
    put(vm, "/tmp");
    CONTRACT_OK(kelpie_vm_get(&vm_op, vm, "/tmp/folder/file", stream_take, &got, &err_));
    assert_true(tar_find(&got.bytes, "file", &content));
    assert_content(&content);
    klp_buf_finish(&got.bytes);
}

static void test_contract_vm__programs_see_the_files(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    const char *const argv[] = {"@cat", "/tmp/folder/file", NULL};
    struct kelpie_exec exec = {.argv = argv};
    struct klp_exec_output result;
    put(vm, "/tmp");
    CONTRACT_OK(klp_exec_collect(&vm_op, vm, &exec, (struct klp_bytes){0}, &result, &err_));
    assert_content(&result.out);
    klp_exec_output_finish(&result);
}

static void test_contract_vm__files_that_are_not_there(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    struct stream got = {.bytes = KLP_BUF_INIT(KLP_MIB)};
    CONTRACT_FAIL(NOT_FOUND, "/no/such/file",
                  kelpie_vm_get(&vm_op, vm, "/no/such/file", stream_take, &got, &err_));
    CONTRACT_FAIL(INVALID, "", kelpie_vm_get(&vm_op, vm, "", stream_take, &got, &err_));
    assert_int_equal(got.bytes.size, 0);
}

static void test_contract_vm__damaged_archives_are_refused(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    struct stream stream = {.bytes = KLP_BUF_INIT(KLP_MIB)};
    for (size_t i = 0; i < 4 * KLP_TAR_BLOCK; i++)
        klp_buf_append_u8(&stream.bytes, (uint8_t)(i + 1));
    CONTRACT_FAIL(CORRUPT, "/tmp", kelpie_vm_put(&vm_op, vm, "/tmp", stream_give, &stream, &err_));
    klp_buf_clear(&stream.bytes);
    stream.at = 0;
    entry_add(&stream.bytes, KLP_TAR_FILE, "cut-off", 4096);
    stream.bytes.size -= 2048;
    CONTRACT_FAIL(CORRUPT, "/tmp", kelpie_vm_put(&vm_op, vm, "/tmp", stream_give, &stream, &err_));
    klp_buf_finish(&stream.bytes);
    assert_true(vm_answers(vm, 10000));
}

static bool never(void *arg, const void *data, size_t size)
{
    (void)arg;
    (void)data;
    (void)size;
    return false;
}

static void test_contract_vm__a_get_may_stop_listening(void **state)
{
    (void)state;
    struct kelpie_vm *vm = vm_shared();
    put(vm, "/tmp");
    CONTRACT_FAIL(CANCELLED, "/tmp/folder",
                  kelpie_vm_get(&vm_op, vm, "/tmp/folder", never, NULL, &err_));
    assert_true(vm_answers(vm, 10000));
}

size_t vm_file_tests(struct CMUnitTest *out)
{
    return VM_TESTS(out, VM_TEST(files_come_back), VM_TEST(one_file_comes_back),
                    VM_TEST(programs_see_the_files), VM_TEST(files_that_are_not_there),
                    VM_TEST(damaged_archives_are_refused), VM_TEST(a_get_may_stop_listening));
}
