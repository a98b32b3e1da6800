/* SPDX-License-Identifier: Apache-2.0 */
/* The refs of a local store. Ref "images/base/x86" is the file refs/images/base+x86, ref "images"
 * is refs/images/+ : one level of folders, so a new ref costs two syncs and no name can stand in
 * another's way
 * ('+' occurs in no ref name and sorts before every byte that does). A file holds the value and a
 * line
 * "\n#" + CRC-32 in hex + "\n": a torn or flipped ref is told from a good one. */
#include "store/local/tree.h"

#include <string.h>

#include "base/crc32.h"
#include "base/fmt.h"

#define SEAL_SIZE 11u /* "\n#" 8 digits "\n" */
#define ONE_PART "+"

struct ref_place {
    char class[KLP_REF_NAME_MAX + 1];
    char file[KLP_REF_NAME_MAX + 1];
};

static struct ref_place place_of(const char *name)
{
    struct ref_place place = {0};
    size_t size = strlen(name), at = 0;
    KLP_ASSERT(size <= KLP_REF_NAME_MAX);
    while (at < size && name[at] != '/')
        at++;
    memcpy(place.class, name, at);
    if (at == size) {
        place.file[0] = ONE_PART[0];
        return place;
    }
    for (size_t i = at + 1; i < size; i++)
        place.file[i - at - 1] = name[i] == '/' ? '+' : name[i];
    return place;
}

/* "" when the file is none of ours. */
static void name_of(char out[KLP_REF_NAME_MAX + 1], const char *class, const char *file)
{
    size_t class_size = strlen(class), file_size = strlen(file);
    out[0] = '\0';
    if (class_size + 1 + file_size > KLP_REF_NAME_MAX)
        return;
    memcpy(out, class, class_size);
    if (strcmp(file, ONE_PART) == 0) {
        out[class_size] = '\0';
    } else {
        out[class_size] = '/';
        for (size_t i = 0; i <= file_size; i++)
            out[class_size + 1 + i] = file[i] == '+' ? '/' : file[i];
    }
    if (!klp_ref_name_check(out, NULL))
        out[0] = '\0';
}

static void seal_of(char out[SEAL_SIZE + 1], const void *value, size_t size)
{
    klp_format(out, SEAL_SIZE + 1, "\n#%08x\n", klp_crc32(0, value, size));
}

/* ---- create */

static bool value_write(struct klp_store_local *store, struct klp_dir *dir, const void *value,
                        size_t size, struct klp_file **out, struct kelpie_error **err)
{
    KLP_AUTO(file) struct klp_file *file = NULL;
    uint8_t bytes[KLP_REF_VALUE_MAX + SEAL_SIZE + 1];
    KLP_ASSERT(size <= KLP_REF_VALUE_MAX);
    if (size > 0)
        memcpy(bytes, value, size);
    seal_of((char *)bytes + size, value, size);
    KLP_CHECK(klp_file_create_unnamed(dir, &file, err));
    KLP_CHECK(klp_file_pwrite(file, 0, bytes, size + SEAL_SIZE, err));
    KLP_CHECK(klp_local_file_sync(store, file, err));
    *out = KLP_TAKE(&file);
    return true;
}

/* The name is there, but perhaps not for ever: take it back as far as that goes, and say so. */
static kelpie_outcome name_doubtful(struct klp_dir *dir, const char *file,
                                    const struct kelpie_error *why, struct kelpie_error **err)
{
    struct kelpie_error *ignored = NULL;
    if (!klp_dir_remove(dir, file, &ignored))
        klp_error_clear(&ignored);
    return klp_unknown(err, "it is not known whether the ref will last: %s",
                       kelpie_error_message(why));
}

static bool is_there(struct klp_dir *dir, const char *name)
{
    KLP_AUTO(file) struct klp_file *file = NULL;
    return klp_file_open(dir, name, &file, NULL);
}

kelpie_outcome klp_local_ref_create(const struct kelpie_op *op, struct klp_store *base,
                                    const char *name, const void *value, size_t size,
                                    struct kelpie_error **err)
{
    struct klp_store_local *store = klp_store_local_from(base);
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(file) struct klp_file *file = NULL;
    const struct ref_place place = place_of(name);
    KLP_REQUIRE(klp_local_writable(store, err));
    KLP_REQUIRE(klp_local_use_current(store, &use, err));
    KLP_REQUIRE(klp_local_class_create(&use, place.class, &dir, err));
    KLP_AUTO(kelpie_error) struct kelpie_error *why = NULL;
    bool taken = is_there(dir, place.file);
    if (!taken) {
        KLP_REQUIRE(value_write(store, dir, value, size, &file, err));
        klp_point(op->env, "store.ref-written");
        taken = !klp_file_link(file, dir, place.file, &why);
        if (taken && klp_error_code(&why) != KELPIE_E_EXISTS) {
            klp_error_move(err, &why);
            return klp_local_failed();
        }
        klp_error_clear(&why);
    }
    /* Also before EXISTS: whoever is told so relies on the other's ref, which may not be durable
     * yet. */
    klp_point(op->env, "store.ref-named");
    if (!klp_local_dir_sync(store, dir, &why)) {
        if (!taken)
            return name_doubtful(dir, place.file, why, err);
        klp_error_move(err, &why);
        return klp_local_failed();
    }
    if (taken)
        return klp_fail(err, KELPIE_E_EXISTS, "the ref is there already");
    return KLP_OK;
}

/* ---- get, delete */

/* NOT_FOUND only if the store itself is there. *use is the caller's to end. */
static bool class_open(struct klp_store_local *store, struct klp_local_use *use, const char *class,
                       struct klp_dir **out, struct kelpie_error **err)
{
    KLP_CHECK(klp_local_use_current(store, use, err));
    return klp_dir_open_at(use->tree->refs, class, false, out, err);
}

static kelpie_outcome value_check(struct klp_buf *text, struct kelpie_error **err)
{
    char seal[SEAL_SIZE + 1];
    if (text->size >= SEAL_SIZE) {
        size_t size = text->size - SEAL_SIZE;
        seal_of(seal, text->data, size);
        if (memcmp(text->data + size, seal, SEAL_SIZE) == 0)
            return KLP_OK;
    }
    return klp_fail(err, KELPIE_E_CORRUPT, "its file of %zu bytes is damaged", text->size);
}

kelpie_outcome klp_local_ref_get(const struct kelpie_op *op, struct klp_store *base,
                                 const char *name, struct klp_buf *out, struct kelpie_error **err)
{
    (void)op;
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    KLP_AUTO(buf) struct klp_buf text = KLP_BUF_INIT(KLP_REF_VALUE_MAX + SEAL_SIZE);
    const struct ref_place place = place_of(name);
    KLP_REQUIRE(class_open(klp_store_local_from(base), &use, place.class, &dir, err));
    struct kelpie_error *why = NULL;
    if (!klp_file_read_all(dir, place.file, &text, &why)) {
        bool too_large = klp_error_code(&why) == KELPIE_E_LIMIT;
        if (!too_large) {
            klp_error_move(err, &why);
            return klp_local_failed();
        }
        klp_error_clear(&why);
        return klp_fail(err, KELPIE_E_CORRUPT, "its file is over %u bytes",
                        KLP_REF_VALUE_MAX + SEAL_SIZE);
    }
    KLP_TRY(value_check(&text, err));
    klp_buf_append(out, text.data, text.size - SEAL_SIZE);
    KLP_REQUIRE(klp_buf_check(out, "a ref of the store", err));
    return KLP_OK;
}

static bool absent_is_fine(bool done, struct kelpie_error **why, struct kelpie_error **err)
{
    if (done || klp_error_code(why) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(why);
        return true;
    }
    klp_error_move(err, why);
    return false;
}

kelpie_outcome klp_local_ref_delete(const struct kelpie_op *op, struct klp_store *base,
                                    const char *name, struct kelpie_error **err)
{
    (void)op;
    struct klp_store_local *store = klp_store_local_from(base);
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    const struct ref_place place = place_of(name);
    struct kelpie_error *why = NULL;
    KLP_REQUIRE(klp_local_use_current(store, &use, err));
    bool opened = klp_dir_open_at(use.tree->refs, place.class, false, &dir, &why);
    KLP_REQUIRE(absent_is_fine(opened, &why, err));
    if (!opened)
        return KLP_OK;
    bool removed = klp_dir_remove(dir, place.file, &why);
    KLP_REQUIRE(absent_is_fine(removed, &why, err));
    /* A ref that comes back after a crash would hold garbage for ever: deletion is durable, too. */
    if (!klp_local_dir_sync(store, dir, &why)) {
        KLP_AUTO(kelpie_error) struct kelpie_error *cause = KLP_TAKE(&why);
        return klp_unknown(err, "it is not known whether the ref will stay deleted: %s",
                           kelpie_error_message(cause));
    }
    return KLP_OK;
}

/* ---- list */

struct ref_walk {
    const struct kelpie_op *op;
    struct klp_dir *refs;
    struct ref_place prefix; /* class "" = all; file "+" = all of the class */
    bool (*each)(void *arg, const char *name);
    void *arg;
    const char *class; /* under way */
    bool ended;        /* by the callback */
    bool failed;
    struct kelpie_error *why;
};

static bool is_below(const struct ref_walk *walk, const char *file)
{
    if (walk->prefix.class[0] == '\0')
        return true;
    if (strcmp(walk->prefix.file, ONE_PART) == 0)
        return strcmp(file, ONE_PART) != 0;
    size_t size = strlen(walk->prefix.file);
    return strncmp(file, walk->prefix.file, size) == 0 && file[size] == '+';
}

static bool visit_file(void *arg, const char *file)
{
    struct ref_walk *walk = arg;
    char name[KLP_REF_NAME_MAX + 1];
    if (!kelpie_is_ok(klp_op_check(walk->op, "listing refs", &walk->why))) {
        walk->failed = true;
        return false;
    }
    name_of(name, walk->class, file);
    if (name[0] != '\0' && is_below(walk, file))
        walk->ended = !walk->each(walk->arg, name);
    return !walk->ended;
}

static bool visit_class(void *arg, const char *class)
{
    struct ref_walk *walk = arg;
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    walk->class = class;
    if (!klp_dir_open_at(walk->refs, class, false, &dir, &walk->why)) {
        walk->failed = klp_error_code(&walk->why) != KELPIE_E_NOT_FOUND;
        if (!walk->failed)
            klp_error_clear(&walk->why);
    } else if (!klp_dir_list(dir, visit_file, walk, &walk->why)) {
        walk->failed = true;
    }
    return !walk->ended && !walk->failed;
}

kelpie_outcome klp_local_ref_list(const struct kelpie_op *op, struct klp_store *base,
                                  const char *prefix, bool (*each)(void *arg, const char *name),
                                  void *arg, struct kelpie_error **err)
{
    KLP_AUTO(local_use) struct klp_local_use use = {0};
    KLP_REQUIRE(klp_local_use_current(klp_store_local_from(base), &use, err));
    struct ref_walk walk = {.op = op, .refs = use.tree->refs, .each = each, .arg = arg};
    if (prefix[0] != '\0') {
        walk.prefix = place_of(prefix);
        (void)visit_class(&walk, walk.prefix.class);
    } else {
        KLP_REQUIRE(klp_dir_list(use.tree->refs, visit_class, &walk, err));
    }
    if (walk.failed) {
        klp_error_move(err, &walk.why);
        return klp_local_failed();
    }
    return KLP_OK;
}
