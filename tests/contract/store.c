/* SPDX-License-Identifier: Apache-2.0 */
/* What every store must do, over any implementation that tests/contract/store.h can reach: objects,
 * and the store as a whole. Refs: store_refs.c. */
#include "contract/store_inside.h"

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "base/limits.h"

static struct klp_digest put_text(enum klp_object_kind kind, const char *text)
{
    struct klp_digest digest;
    CONTRACT_OK(klp_store_put(&op, store, kind, text, strlen(text), &digest, &err_));
    return digest;
}

static void assert_content(struct klp_store *from, enum klp_object_kind kind,
                           const struct klp_digest *digest, const char *text)
{
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(KLP_MIB);
    CONTRACT_OK(klp_store_get(&op, from, kind, digest, &out, &err_));
    assert_int_equal(out.size, strlen(text));
    assert_string_equal(klp_buf_text(&out), text);
}

/* ---- objects */

static void test_contract_store__put_get_all_kinds(void **state)
{
    (void)state;
    for (int kind = 0; kind < KLP_OBJECT_KIND_COUNT; kind++) {
        struct klp_digest digest = put_text((enum klp_object_kind)kind, "some bytes"), want;
        klp_sha256_once("some bytes", 10, &want);
        assert_true(klp_digest_equal(&digest, &want));
        assert_content(store, (enum klp_object_kind)kind, &digest, "some bytes");
        CONTRACT_OK(klp_store_verify(&op, store, (enum klp_object_kind)kind, &digest, &err_));
    }
}

static void test_contract_store__empty_object(void **state)
{
    (void)state;
    struct klp_digest digest;
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    uint64_t size = 7;
    CONTRACT_OK(klp_store_put(&op, store, KLP_OBJECT_BLOB, NULL, 0, &digest, &err_));
    assert_content(store, KLP_OBJECT_BLOB, &digest, "");
    CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_BLOB, &digest, &err_));
    CONTRACT_OK(klp_store_open(&op, store, KLP_OBJECT_BLOB, &digest, &reader, &size, &err_));
    assert_int_equal(size, 0);
    CONTRACT_OK(klp_store_read(&op, reader, 0, NULL, 0, &err_));
    char byte;
    CONTRACT_FAIL(CORRUPT, "blobs/e3b0c442", klp_store_read(&op, reader, 0, &byte, 1, &err_));
}

static struct klp_digest put_parts(const char *const *parts, size_t count, bool *out_existed)
{
    KLP_AUTO(store_writer) struct klp_store_writer *writer = NULL;
    struct klp_digest digest;
    uint64_t size = 0, sum = 0;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    for (size_t i = 0; i < count; i++) {
        CONTRACT_OK(klp_store_write(&op, writer, parts[i], strlen(parts[i]), &err_));
        sum += strlen(parts[i]);
    }
    CONTRACT_OK(klp_store_commit(&op, KLP_TAKE(&writer), &digest, &size, out_existed, &err_));
    assert_int_equal(size, sum);
    return digest;
}

static void test_contract_store__parts_make_one_object(void **state)
{
    (void)state;
    bool existed = true;
    struct klp_digest a = put_parts((const char *const[]){"one ", "two ", "three"}, 3, &existed);
    assert_false(existed);
    struct klp_digest b = put_parts((const char *const[]){"one two three"}, 1, &existed);
    assert_true(existed);
    assert_true(klp_digest_equal(&a, &b));
    assert_content(store, KLP_OBJECT_PACK, &a, "one two three");
}

static bool name_add(void *arg, const struct klp_digest *digest, uint64_t size)
{
    struct names *names = arg;
    if (names->count > 0)
        assert_true(memcmp(names->last.bytes, digest->bytes, sizeof(digest->bytes)) < 0);
    names->last = *digest;
    names->count++;
    names->bytes += size;
    return names->count != names->stop_after;
}

static struct names list_kind(enum klp_object_kind kind, size_t stop_after)
{
    struct names names = {.stop_after = stop_after};
    CONTRACT_OK(klp_store_list(&op, store, kind, name_add, &names, &err_));
    return names;
}

static void test_contract_store__abandon_leaves_nothing(void **state)
{
    (void)state;
    struct klp_store_writer *writer = NULL;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    CONTRACT_OK(klp_store_write(&op, writer, "abc", 3, &err_));
    klp_store_abandon(writer);
    klp_store_abandon(NULL);
    assert_int_equal(list_kind(KLP_OBJECT_PACK, 0).count, 0);
}

static void test_contract_store__absent_is_named(void **state)
{
    (void)state;
    struct klp_digest digest;
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(100);
    struct klp_store_reader *reader = NULL;
    klp_sha256_once("absent", 6, &digest);
    char hex[KLP_DIGEST_SIZE], name[KLP_DIGEST_SIZE + 8];
    klp_digest_text(&digest, hex);
    snprintf(name, sizeof(name), "maps/%s", hex);
    CONTRACT_FAIL(NOT_FOUND, name,
                  klp_store_open(&op, store, KLP_OBJECT_MAP, &digest, &reader, NULL, &err_));
    assert_null(reader);
    CONTRACT_FAIL(NOT_FOUND, name, klp_store_get(&op, store, KLP_OBJECT_MAP, &digest, &out, &err_));
    CONTRACT_FAIL(NOT_FOUND, name, klp_store_verify(&op, store, KLP_OBJECT_MAP, &digest, &err_));
    /* A neighbour in the same place does not help. */
    put_text(KLP_OBJECT_MAP, "other");
    CONTRACT_FAIL(NOT_FOUND, klp_store_name(store),
                  klp_store_verify(&op, store, KLP_OBJECT_MAP, &digest, &err_));
}

static void test_contract_store__get_keeps_to_the_limit_and_appends(void **state)
{
    (void)state;
    struct klp_digest digest = put_text(KLP_OBJECT_STATE, "0123456789");
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(19);
    CONTRACT_OK(klp_store_get(&op, store, KLP_OBJECT_STATE, &digest, &out, &err_));
    CONTRACT_FAIL(LIMIT, "states/84d89877",
                  klp_store_get(&op, store, KLP_OBJECT_STATE, &digest, &out, &err_));
    assert_string_equal(klp_buf_text(&out), "0123456789");
    KLP_AUTO(buf) struct klp_buf twice = KLP_BUF_INIT(20);
    CONTRACT_OK(klp_store_get(&op, store, KLP_OBJECT_STATE, &digest, &twice, &err_));
    CONTRACT_OK(klp_store_get(&op, store, KLP_OBJECT_STATE, &digest, &twice, &err_));
    assert_string_equal(klp_buf_text(&twice), "01234567890123456789");
}

static void test_contract_store__ranges(void **state)
{
    (void)state;
    struct klp_digest digest = put_text(KLP_OBJECT_PACK, "0123456789");
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    uint64_t size = 0;
    char bytes[16] = "";
    CONTRACT_OK(klp_store_open(&op, store, KLP_OBJECT_PACK, &digest, &reader, &size, &err_));
    assert_int_equal(size, 10);
    CONTRACT_OK(klp_store_read(&op, reader, 3, bytes, 4, &err_));
    assert_memory_equal(bytes, "3456", 4);
    CONTRACT_OK(klp_store_read(&op, reader, 10, bytes, 0, &err_));
    CONTRACT_FAIL(CORRUPT, "packs/84d89877", klp_store_read(&op, reader, 3, bytes, 8, &err_));
    CONTRACT_FAIL(CORRUPT, "it ends at 10", klp_store_read(&op, reader, 11, bytes, 0, &err_));
    CONTRACT_FAIL(CORRUPT, "packs/84d89877",
                  klp_store_read(&op, reader, UINT64_MAX, bytes, 2, &err_));
    /* Held open: a deletion takes nothing from who reads already. */
    CONTRACT_OK(klp_store_delete(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    CONTRACT_OK(klp_store_read(&op, reader, 0, bytes, 10, &err_));
    assert_memory_equal(bytes, "0123456789", 10);
}

static void test_contract_store__several_blocks(void **state)
{
    (void)state;
    const size_t size = 2 * KLP_MIB + 4097;
    uint8_t *data = test_malloc(size);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 31 + (i >> 12));
    struct klp_digest digest;
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(size);
    CONTRACT_OK(klp_store_put(&op, store, KLP_OBJECT_PACK, data, size, &digest, &err_));
    CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    CONTRACT_OK(klp_store_get(&op, store, KLP_OBJECT_PACK, &digest, &out, &err_));
    assert_int_equal(out.size, size);
    assert_memory_equal(out.data, data, size);
    test_free(data);
}

static void test_contract_store__flipped_bit_is_found(void **state)
{
    (void)state;
    if (suite->damage == NULL)
        CONTRACT_SKIP("the bytes of this store cannot be reached");
    static const uint64_t places[] = {0, 5, 9};
    for (size_t i = 0; i < KLP_COUNT(places); i++) {
        struct klp_digest digest = put_text(KLP_OBJECT_MANIFEST, "0123456789");
        KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(100);
        klp_buf_append_text(&out, "before");
        suite->damage(suite->arg, KLP_OBJECT_MANIFEST, &digest, CONTRACT_FLIP, places[i]);
        CONTRACT_FAIL(CORRUPT, "manifests/84d898",
                      klp_store_get(&op, store, KLP_OBJECT_MANIFEST, &digest, &out, &err_));
        assert_string_equal(klp_buf_text(&out), "before");
        assert_int_equal(out.size, 6);
        CONTRACT_FAIL(CORRUPT, "manifests/84d898",
                      klp_store_verify(&op, store, KLP_OBJECT_MANIFEST, &digest, &err_));
        suite->damage(suite->arg, KLP_OBJECT_MANIFEST, &digest, CONTRACT_FLIP, places[i]);
        CONTRACT_OK(klp_store_verify(&op, store, KLP_OBJECT_MANIFEST, &digest, &err_));
    }
}

static void test_contract_store__every_cut_is_found(void **state)
{
    (void)state;
    if (suite->damage == NULL)
        CONTRACT_SKIP("the bytes of this store cannot be reached");
    struct klp_digest digest = put_text(KLP_OBJECT_PACK, "0123456789");
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    char bytes[10];
    CONTRACT_OK(klp_store_open(&op, store, KLP_OBJECT_PACK, &digest, &reader, NULL, &err_));
    for (int size = 9; size >= 0; size--) {
        suite->damage(suite->arg, KLP_OBJECT_PACK, &digest, CONTRACT_CUT, (uint64_t)size);
        CONTRACT_FAIL(CORRUPT, "packs/84d89877",
                      klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
        CONTRACT_FAIL(CORRUPT, "packs/84d89877", klp_store_read(&op, reader, 0, bytes, 10, &err_));
        /* Writing it again must not answer that all is well. */
        struct klp_digest again;
        CONTRACT_FAIL(CORRUPT, "packs/84d89877",
                      klp_store_put(&op, store, KLP_OBJECT_PACK, "0123456789", 10, &again, &err_));
    }
}

struct writer_task {
    unsigned number;
    unsigned wrong;
};

#define WRITER_OBJECTS 20

static void write_same(void *arg)
{
    struct writer_task *task = arg;
    for (unsigned i = 0; i < WRITER_OBJECTS; i++) {
        char text[32];
        struct klp_digest digest, want;
        int size = snprintf(text, sizeof(text), "object %u", i);
        klp_sha256_once(text, (size_t)size, &want);
        if (!kelpie_is_ok(
                klp_store_put(&op, store, KLP_OBJECT_PACK, text, (size_t)size, &digest, NULL)) ||
            !klp_digest_equal(&digest, &want) ||
            !kelpie_is_ok(klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, NULL)))
            task->wrong++;
    }
}

static void test_contract_store__many_writers_of_the_same_objects(void **state)
{
    (void)state;
    struct writer_task tasks[4] = {0};
    contract_together(suite->env, 4, write_same, tasks, sizeof(tasks[0]));
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(tasks[i].wrong, 0);
    assert_int_equal(list_kind(KLP_OBJECT_PACK, 0).count, WRITER_OBJECTS);
}

static void test_contract_store__list_is_sorted_and_by_kind(void **state)
{
    (void)state;
    for (int i = 0; i < 40; i++) {
        char text[16];
        snprintf(text, sizeof(text), "%08d", i);
        put_text(KLP_OBJECT_MAP, text);
    }
    put_text(KLP_OBJECT_BLOB, "alone");
    struct names names = list_kind(KLP_OBJECT_MAP, 0);
    assert_int_equal(names.count, 40);
    assert_int_equal(names.bytes, 40 * 8);
    assert_int_equal(list_kind(KLP_OBJECT_MAP, 7).count, 7);
    assert_int_equal(list_kind(KLP_OBJECT_BLOB, 0).count, 1);
    assert_int_equal(list_kind(KLP_OBJECT_STATE, 0).count, 0);
}

static void test_contract_store__delete(void **state)
{
    (void)state;
    struct klp_digest digest = put_text(KLP_OBJECT_PACK, "gone soon");
    put_text(KLP_OBJECT_PACK, "stays");
    CONTRACT_OK(klp_store_delete(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    CONTRACT_OK(klp_store_delete(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    CONTRACT_OK(klp_store_delete(&op, store, KLP_OBJECT_BLOB, &digest, &err_));
    CONTRACT_FAIL(NOT_FOUND, "packs/",
                  klp_store_verify(&op, store, KLP_OBJECT_PACK, &digest, &err_));
    assert_int_equal(list_kind(KLP_OBJECT_PACK, 0).count, 1);
    digest = put_text(KLP_OBJECT_PACK, "gone soon");
    assert_content(store, KLP_OBJECT_PACK, &digest, "gone soon");
}

static void test_contract_store__path(void **state)
{
    (void)state;
    KLP_AUTO(memory) char *path = NULL;
    struct klp_digest digest = put_text(KLP_OBJECT_BLOB, "a kernel"), absent;
    if (!suite->has_paths) {
        CONTRACT_FAIL(UNSUPPORTED, "blobs/",
                      klp_store_path(&op, store, KLP_OBJECT_BLOB, &digest, &path, &err_));
        return;
    }
    CONTRACT_OK(klp_store_path(&op, store, KLP_OBJECT_BLOB, &digest, &path, &err_));
    assert_int_equal(path[0], '/');
    char bytes[16] = "";
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof(bytes), file), 8);
    assert_string_equal(bytes, "a kernel");
    fclose(file);
    klp_sha256_once("absent", 6, &absent);
    char *none = NULL;
    CONTRACT_FAIL(NOT_FOUND, "blobs/",
                  klp_store_path(&op, store, KLP_OBJECT_BLOB, &absent, &none, &err_));
    assert_null(none);
}

/* ---- the store as a whole */

static void test_contract_store__second_opening_sees_all(void **state)
{
    (void)state;
    KLP_AUTO(store) struct klp_store *second = NULL;
    CONTRACT_TRUE(suite->again(suite->arg, &second, &err_));
    struct klp_digest digest = put_text(KLP_OBJECT_PACK, "shared");
    ref_put("snapshots/shared", "v");
    assert_content(second, KLP_OBJECT_PACK, &digest, "shared");
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    CONTRACT_OK(klp_ref_get(&op, second, "snapshots/shared", &out, &err_));
    CONTRACT_FAIL(EXISTS, "snapshots/shared",
                  klp_ref_create(&op, second, "snapshots/shared", "w", 1, &err_));
}

static void test_contract_store__ended_op_does_nothing(void **state)
{
    (void)state;
    struct klp_digest digest = put_text(KLP_OBJECT_PACK, "here");
    struct klp_store_writer *writer = NULL;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    KLP_AUTO(cancel) struct klp_cancel *cancel = klp_cancel_create(suite->env);
    struct kelpie_op late = op, stopped = op;
    late.deadline_ns = klp_boot_ns(suite->env);
    stopped.cancel = cancel;
    klp_cancel_raise(cancel);
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(100);
    struct klp_store_reader *reader = NULL;
    struct names names = {0};
    CONTRACT_FAIL(TIMEOUT, "", klp_store_write(&late, writer, "x", 1, &err_));
    CONTRACT_FAIL(CANCELLED, "", klp_store_write(&stopped, writer, "x", 1, &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_store_commit(&late, writer, &digest, NULL, NULL, &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_store_get(&late, store, KLP_OBJECT_PACK, &digest, &out, &err_));
    CONTRACT_FAIL(CANCELLED, "",
                  klp_store_open(&stopped, store, KLP_OBJECT_PACK, &digest, &reader, NULL, &err_));
    CONTRACT_FAIL(CANCELLED, "",
                  klp_store_delete(&stopped, store, KLP_OBJECT_PACK, &digest, &err_));
    CONTRACT_FAIL(TIMEOUT, "",
                  klp_store_list(&late, store, KLP_OBJECT_PACK, name_add, &names, &err_));
    CONTRACT_FAIL(CANCELLED, "", klp_ref_create(&stopped, store, "a/b", "v", 1, &err_));
    CONTRACT_FAIL(CANCELLED, "", klp_ref_delete(&stopped, store, "a/b", &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_ref_get(&late, store, "a/b", &out, &err_));
    CONTRACT_FAIL(TIMEOUT, "", klp_ref_list(&late, store, "a", ref_add, &names, &err_));
    assert_int_equal(list_kind(KLP_OBJECT_PACK, 0).count, 1);
    assert_refs("", 0, "");
}

static void test_contract_store__taken_away_is_unreachable(void **state)
{
    (void)state;
    if (suite->hide == NULL)
        CONTRACT_SKIP("this store cannot be taken away");
    struct klp_digest digest = put_text(KLP_OBJECT_PACK, "before"), other, absent;
    ref_put("snapshots/before", "v");
    KLP_AUTO(store_writer) struct klp_store_writer *writer = NULL;
    CONTRACT_OK(klp_store_begin(&op, store, KLP_OBJECT_PACK, &writer, &err_));
    suite->hide(suite->arg, true);
    const char *name = klp_store_name(store);
    KLP_AUTO(buf) struct klp_buf out = KLP_BUF_INIT(100);
    struct names names = {0};
    klp_sha256_once("absent", 6, &absent);
    CONTRACT_FAIL(UNREACHABLE, name,
                  klp_store_put(&op, store, KLP_OBJECT_PACK, "new", 3, &other, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_store_verify(&op, store, KLP_OBJECT_PACK, &absent, &err_));
    CONTRACT_FAIL(UNREACHABLE, name,
                  klp_store_list(&op, store, KLP_OBJECT_PACK, name_add, &names, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_ref_create(&op, store, "snapshots/new", "v", 1, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_ref_get(&op, store, "snapshots/before", &out, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_ref_list(&op, store, "snapshots", ref_add, &names, &err_));
    CONTRACT_FAIL(UNREACHABLE, name, klp_ref_delete(&op, store, "snapshots/before", &err_));
    suite->hide(suite->arg, false);
    assert_content(store, KLP_OBJECT_PACK, &digest, "before");
    assert_ref("snapshots/before", "v");
    put_text(KLP_OBJECT_PACK, "after");
    CONTRACT_FAIL(NOT_FOUND, name, klp_store_verify(&op, store, KLP_OBJECT_PACK, &absent, &err_));
}

int contract_store(const struct contract_store *of)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(put_get_all_kinds),
        STORE_TEST(empty_object),
        STORE_TEST(parts_make_one_object),
        STORE_TEST(abandon_leaves_nothing),
        STORE_TEST(absent_is_named),
        STORE_TEST(get_keeps_to_the_limit_and_appends),
        STORE_TEST(ranges),
        STORE_TEST(several_blocks),
        STORE_TEST(flipped_bit_is_found),
        STORE_TEST(every_cut_is_found),
        STORE_TEST(many_writers_of_the_same_objects),
        STORE_TEST(list_is_sorted_and_by_kind),
        STORE_TEST(delete),
        STORE_TEST(path),
        STORE_TEST(second_opening_sees_all),
        STORE_TEST(ended_op_does_nothing),
        STORE_TEST(taken_away_is_unreachable),
    };
    suite = of;
    return cmocka_run_group_tests_name(of->name, tests, NULL, NULL) + contract_store_refs(of);
}
