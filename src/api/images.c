/* SPDX-License-Identifier: Apache-2.0 */
/* /v1/images: PUT takes a tar of image.json, kernel and initramfs, in this order. */
#include <string.h>
#include <unistd.h>

#include "api/inside.h"
#include "base/fmt.h"
#include "format/tar.h"

#define READ_SIZE (256 * KLP_KIB)

struct upload {
    struct api_request *request;
    struct klp_image image;
    struct klp_buf description;
    struct klp_store_writer *writer; /* of the member at hand; NULL = none, or the description */
    struct klp_object_ref *ref;
    bool has_description, has_kernel, has_initramfs;
};

static kelpie_outcome member_begin(struct upload *upload, const struct klp_tar_entry *entry,
                                   struct kelpie_error **err)
{
    struct klp_store *store = klp_node_store(upload->request->api->options.node);
    upload->ref = NULL;
    if (entry->kind != KLP_TAR_FILE)
        return klp_fail(err, KELPIE_E_INVALID, "'%s' does not belong into an image", entry->path);
    if (strcmp(entry->path, "image.json") == 0 && !upload->has_description) {
        upload->has_description = true;
        return KLP_OK;
    }
    bool *seen = strcmp(entry->path, "kernel") == 0      ? &upload->has_kernel
                 : strcmp(entry->path, "initramfs") == 0 ? &upload->has_initramfs
                                                         : NULL;
    if (seen == NULL || *seen)
        return klp_fail(err, KELPIE_E_INVALID, "'%s' does not belong into an image", entry->path);
    *seen = true;
    upload->ref = seen == &upload->has_kernel ? &upload->image.kernel : &upload->image.initramfs;
    return klp_store_begin(&upload->request->op, store, KLP_OBJECT_BLOB, &upload->writer, err);
}

/* What was stored must be what image.json says: it is compared once all three are there. */
static kelpie_outcome member_end(struct upload *upload, struct kelpie_error **err)
{
    bool existed;
    if (upload->writer == NULL)
        return KLP_OK;
    return klp_store_commit(&upload->request->op, KLP_TAKE(&upload->writer), &upload->ref->digest,
                            &upload->ref->size, &existed, err);
}

static kelpie_outcome member_bytes(struct upload *upload, struct klp_bytes content,
                                   struct kelpie_error **err)
{
    if (upload->writer != NULL)
        return klp_store_write(&upload->request->op, upload->writer, content.data, content.size,
                               err);
    klp_buf_append(&upload->description, content.data, content.size);
    KLP_REQUIRE(klp_buf_check(&upload->description, "image.json", err));
    return KLP_OK;
}

static kelpie_outcome upload_event(struct upload *upload, enum klp_tar_event event,
                                   const struct klp_tar_entry *entry, struct klp_bytes content,
                                   struct kelpie_error **err)
{
    switch (event) {
    case KLP_TAR_ENTRY:
        return member_begin(upload, entry, err);
    case KLP_TAR_CONTENT:
        return member_bytes(upload, content, err);
    case KLP_TAR_ENTRY_END:
        return member_end(upload, err);
    default:
        return KLP_OK;
    }
}

static kelpie_outcome upload_read(struct upload *upload, struct kelpie_error **err)
{
    KLP_AUTO(tar_reader) struct klp_tar_reader *reader = klp_tar_reader_create(API_SPOOL_MAX);
    uint8_t *bytes = klp_mem_alloc(READ_SIZE);
    kelpie_outcome outcome = KLP_OK;
    ssize_t got = 0;
    while (kelpie_is_ok(outcome) && (got = read(upload->request->spool_fd, bytes, READ_SIZE)) > 0) {
        struct klp_bytes input = {bytes, (size_t)got}, content;
        const struct klp_tar_entry *entry;
        enum klp_tar_event event;
        do {
            event = klp_tar_next(reader, &input, &entry, &content, err);
            outcome = (kelpie_outcome){KELPIE_FAIL};
            if (event != KLP_TAR_BAD)
                outcome = upload_event(upload, event, entry, content, err);
        } while (kelpie_is_ok(outcome) && event != KLP_TAR_NEED_MORE && event != KLP_TAR_END);
    }
    klp_mem_free(bytes);
    return outcome;
}

static bool upload_check(struct upload *upload, const char *name, struct kelpie_error **err)
{
    struct klp_image told;
    if (!upload->has_description || !upload->has_kernel || !upload->has_initramfs)
        return klp_refuse(err, KELPIE_E_INVALID,
                          "an image is a tar of image.json, kernel and initramfs");
    KLP_CHECK(klp_image_decode(klp_buf_view(&upload->description), &told, err));
    if (strcmp(told.name, name) != 0)
        return klp_refuse(err, KELPIE_E_INVALID, "image.json is of '%s', not of '%s'", told.name,
                          name);
    if (!klp_digest_equal(&told.kernel.digest, &upload->image.kernel.digest) ||
        !klp_digest_equal(&told.initramfs.digest, &upload->image.initramfs.digest))
        return klp_refuse(err, KELPIE_E_CORRUPT, "kernel or initramfs is not what image.json says");
    upload->image = told;
    return true;
}

static kelpie_outcome image_put(struct api_request *request, const char *name,
                                struct kelpie_error **err)
{
    struct upload upload = {.request = request, .description = KLP_BUF_INIT(64 * KLP_KIB)};
    KLP_REQUIRE(klp_name_check("image", name, err));
    if (request->spool_fd < 0 || lseek(request->spool_fd, 0, SEEK_SET) != 0)
        return klp_fail(err, KELPIE_E_INVALID, "the body is empty: a tar stream was expected");
    kelpie_outcome outcome = upload_read(&upload, err);
    if (kelpie_is_ok(outcome) && !upload_check(&upload, name, err))
        outcome = (kelpie_outcome){KELPIE_FAIL};
    klp_store_abandon(upload.writer);
    klp_buf_finish(&upload.description);
    KLP_TRY(outcome);
    KLP_TRY(klp_node_image_put(&request->op, request->api->options.node, &upload.image, err));
    struct klp_image_info info;
    KLP_TRY(klp_node_image_get(&request->op, request->api->options.node, name, upload.image.arch,
                               &info, err));
    struct klp_json *items = klp_json_array();
    klp_json_append(items, klp_rest_image_encode(&info));
    reply_json(request, 201, klp_rest_document("images", items));
    return KLP_OK;
}

static bool image_each(void *arg, const struct klp_image_info *image)
{
    klp_json_append(arg, klp_rest_image_encode(image));
    return true;
}

kelpie_outcome api_images(struct api_request *request, struct kelpie_error **err)
{
    struct klp_node *node = request->api->options.node;
    const char *name = request->segments[1], *arch_text = query_text(request, "arch");
    enum klp_arch arch = arch_text != NULL ? klp_arch_parse(arch_text) : klp_arch_host();
    bool get = strcmp(request->method, "GET") == 0;
    struct klp_json *items = NULL;
    if (request->segment_count > 2)
        return route_unknown(request, err);
    if (request->segment_count == 2 && strcmp(request->method, "PUT") == 0)
        return image_put(request, name, err);
    if (request->segment_count == 2 && strcmp(request->method, "DELETE") == 0) {
        KLP_TRY(klp_node_image_remove(&request->op, node, name, arch, err));
        reply_json(request, 200, klp_json_object());
        return KLP_OK;
    }
    if (!get)
        return method_refused(request, err);
    items = klp_json_array();
    kelpie_outcome outcome;
    if (request->segment_count == 1) {
        outcome = klp_node_image_list(&request->op, node, image_each, items, err);
    } else {
        struct klp_image_info info;
        outcome = klp_node_image_get(&request->op, node, name, arch, &info, err);
        if (kelpie_is_ok(outcome))
            image_each(items, &info);
    }
    if (kelpie_is_ok(outcome))
        reply_json(request, 200, klp_rest_document("images", items));
    else
        klp_json_free(items);
    return outcome;
}
