/* SPDX-License-Identifier: Apache-2.0 */
/* Templates: an image booted once, sealed, kept in the store under a key of everything that makes
 * it what it is, and as a resident layer from which VMs start. Images: refs images/NAME/ARCH. */
#include <string.h>

#include "base/ext/sha256.h"
#include "base/fmt.h"
#include "node/inside.h"

/* ---- resident layers */

kelpie_outcome base_get(const struct kelpie_op *op, struct klp_host *host,
                        const struct klp_digest *digest, struct klp_layer **out,
                        struct kelpie_error **err)
{
    struct klp_node *node = node_from_host(host);
    struct klp_layer *found = NULL;
    KLP_LOCKED (node->mutex) {
        for (size_t i = 0; i < NODE_BASES_MAX; i++) {
            struct base *base = &node->bases[i];
            if (found == NULL && base->layer != NULL && klp_digest_equal(&base->digest, digest)) {
                base->used = ++node->base_clock;
                found = klp_layer_share(base->layer);
            }
        }
    }
    if (found == NULL) {
        struct klp_manifest manifest;
        KLP_TRY(klp_snapshot_load(op, &host->snapshots, digest, &manifest, err));
        kelpie_outcome outcome =
            klp_snapshot_materialise(op, &host->snapshots, &manifest, &found, err);
        klp_manifest_finish(&manifest);
        KLP_TRY(outcome);
        base_keep(node, digest, found);
    }
    *out = found;
    return KLP_OK;
}

void base_keep(struct klp_node *node, const struct klp_digest *digest, struct klp_layer *layer)
{
    struct klp_layer *evicted = NULL;
    KLP_LOCKED (node->mutex) {
        struct base *oldest = &node->bases[0];
        for (size_t i = 1; i < NODE_BASES_MAX; i++)
            if (node->bases[i].used < oldest->used)
                oldest = &node->bases[i];
        for (size_t i = 0; i < NODE_BASES_MAX; i++) /* two that missed it at once: one stays */
            if (node->bases[i].layer != NULL && klp_digest_equal(&node->bases[i].digest, digest))
                oldest = &node->bases[i];
        evicted = oldest->layer;
        *oldest = (struct base){*digest, klp_layer_share(layer), ++node->base_clock};
    }
    klp_layer_close(evicted);
}

void bases_drop(struct klp_node *node)
{
    for (size_t i = 0; i < NODE_BASES_MAX; i++)
        klp_layer_close(node->bases[i].layer);
}

/* ---- images */

static bool part_is_known(struct klp_node *node, const struct klp_digest *digest)
{
    bool known = false;
    KLP_LOCKED (node->mutex) {
        for (size_t i = 0; i < NODE_PARTS_MAX; i++)
            known = known || klp_digest_equal(&node->parts[i], digest);
    }
    return known;
}

/* A hypervisor reads the file past the store: its bytes are compared once in a daemon's life. */
kelpie_outcome part_path(const struct kelpie_op *op, struct klp_node *node,
                         const struct klp_digest *digest, char **out, struct kelpie_error **err)
{
    struct klp_store *store = node->host.snapshots.store;
    if (klp_digest_is_zero(digest))
        return KLP_OK;
    if (!part_is_known(node, digest)) {
        KLP_TRY(klp_store_verify(op, store, KLP_OBJECT_BLOB, digest, err));
        KLP_LOCKED (node->mutex) {
            node->parts[node->part_count++ % NODE_PARTS_MAX] = *digest;
        }
    }
    return klp_store_path(op, store, KLP_OBJECT_BLOB, digest, out, err);
}

kelpie_outcome image_load(const struct kelpie_op *op, struct klp_node *node, const char *name,
                          enum klp_arch arch, struct klp_image *out, struct klp_digest *out_digest,
                          struct kelpie_error **err)
{
    char ref[KLP_REF_NAME_MAX];
    struct klp_store *store = node->host.snapshots.store;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(64 * KLP_KIB);
    klp_image_ref(ref, name, arch);
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = klp_ref_get(op, store, ref, &bytes, &error);
    if (!kelpie_is_ok(outcome) && kelpie_error_code(error) == KELPIE_E_NOT_FOUND) {
        klp_error_clear(&error);
        outcome =
            klp_fail(err, KELPIE_E_NOT_FOUND, "no image '%s' for %s", name, klp_arch_name(arch));
        klp_error_remedy_set(err, "kelpie image build %s", name);
        return outcome;
    }
    klp_error_move(err, &error);
    KLP_TRY(outcome);
    if (!klp_digest_parse(klp_buf_text(&bytes), out_digest))
        return klp_fail(err, KELPIE_E_CORRUPT, "ref %s holds no digest", ref);
    klp_buf_clear(&bytes);
    KLP_TRY(klp_store_get(op, store, KLP_OBJECT_BLOB, out_digest, &bytes, err));
    KLP_REQUIRE(klp_image_decode(klp_buf_view(&bytes), out, err));
    return KLP_OK;
}

kelpie_outcome klp_node_image_put(const struct kelpie_op *op, struct klp_node *node,
                                  const struct klp_image *image, struct kelpie_error **err)
{
    char ref[KLP_REF_NAME_MAX], text[KLP_DIGEST_SIZE];
    struct klp_digest digest;
    struct klp_store *store = node->host.snapshots.store;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(64 * KLP_KIB);
    KLP_REQUIRE(klp_name_check("image", image->name, err));
    klp_image_encode(image, &bytes);
    KLP_REQUIRE(klp_buf_check(&bytes, "an image's description", err));
    KLP_TRY(klp_store_verify(op, store, KLP_OBJECT_BLOB, &image->kernel.digest, err));
    KLP_TRY(klp_store_verify(op, store, KLP_OBJECT_BLOB, &image->initramfs.digest, err));
    KLP_TRY(klp_store_put(op, store, KLP_OBJECT_BLOB, bytes.data, bytes.size, &digest, err));
    klp_digest_text(&digest, text);
    klp_image_ref(ref, image->name, image->arch);
    KLP_TRY(klp_ref_delete(op, store, ref, err));
    KLP_TRY(klp_ref_create(op, store, ref, text, strlen(text), err));
    event_post(node, "image.put", "", "%s %s %s", image->name, image->version, text);
    return KLP_OK;
}

static void image_info(const struct klp_image *image, const struct klp_digest *digest,
                       struct klp_image_info *out)
{
    *out = (struct klp_image_info){.arch = image->arch,
                                   .size_bytes = image->kernel.size + image->initramfs.size};
    klp_text_copy(out->name, sizeof(out->name), image->name);
    klp_text_copy(out->version, sizeof(out->version), image->version);
    klp_digest_text(digest, out->digest);
}

kelpie_outcome klp_node_image_get(const struct kelpie_op *op, struct klp_node *node,
                                  const char *name, enum klp_arch arch, struct klp_image_info *out,
                                  struct kelpie_error **err)
{
    struct klp_image image;
    struct klp_digest digest;
    KLP_REQUIRE(klp_name_check("image", name, err));
    KLP_TRY(image_load(op, node, name, arch, &image, &digest, err));
    image_info(&image, &digest, out);
    return KLP_OK;
}

kelpie_outcome klp_node_image_remove(const struct kelpie_op *op, struct klp_node *node,
                                     const char *name, enum klp_arch arch,
                                     struct kelpie_error **err)
{
    struct klp_image_info info;
    char ref[KLP_REF_NAME_MAX];
    KLP_TRY(klp_node_image_get(op, node, name, arch, &info, err));
    klp_image_ref(ref, name, arch);
    return klp_ref_delete(op, node->host.snapshots.store, ref, err);
}

struct image_listing {
    const struct kelpie_op *op;
    struct klp_node *node;
    bool (*each)(void *, const struct klp_image_info *);
    void *arg;
};

static bool image_each(void *arg, const char *ref)
{
    struct image_listing *listing = arg;
    const char *name = ref + strlen("images/"), *end = name;
    while (*end != 0 && *end != '/')
        end++;
    if (*end == 0 || end - name > KLP_NAME_MAX)
        return true;
    char text[KLP_NAME_SIZE], arch_text[16];
    klp_format(text, sizeof(text), "%.*s", (int)(end - name), name);
    klp_format(arch_text, sizeof(arch_text), "%s", end + 1);
    for (char *at = arch_text; *at != 0; at++)
        if (*at == '-')
            *at = '_';
    struct klp_image_info info;
    if (!kelpie_is_ok(klp_node_image_get(listing->op, listing->node, text,
                                         klp_arch_parse(arch_text), &info, NULL)))
        return true;
    return listing->each(listing->arg, &info);
}

kelpie_outcome klp_node_image_list(const struct kelpie_op *op, struct klp_node *node,
                                   bool (*each)(void *, const struct klp_image_info *), void *arg,
                                   struct kelpie_error **err)
{
    struct image_listing listing = {op, node, each, arg};
    return klp_ref_list(op, node->host.snapshots.store, "images", image_each, &listing, err);
}

/* ---- templates */

struct boot { /* what a template is booted from */
    struct kelpie_vm_factory *factory;
    struct kelpie_vm_config config;
    struct klp_image image;
    struct klp_digest image_digest;
    char *kernel, *initramfs;
};

static void boot_finish(struct boot *boot)
{
    klp_mem_free(boot->kernel);
    klp_mem_free(boot->initramfs);
}

static bool backend_needs_image(const struct kelpie_vm_factory *factory)
{
    const char *name = kelpie_vm_factory_name(factory);
    return strcmp(name, "mock") != 0 && strcmp(name, "sim") != 0;
}

static kelpie_outcome boot_fill(const struct kelpie_op *op, struct klp_node *node,
                                const struct klp_agent_identity *identity, struct boot *boot,
                                struct kelpie_error **err)
{
    boot->config =
        (struct kelpie_vm_config){.vcpu_count = identity->vcpus,
                                  .memory_mib = (uint32_t)(identity->memory_bytes / KLP_MIB),
                                  .arch = klp_arch_name(boot->factory->arch)};
    if (!backend_needs_image(boot->factory))
        return KLP_OK;
    KLP_TRY(image_load(op, node, identity->image, boot->factory->arch, &boot->image,
                       &boot->image_digest, err));
    KLP_TRY(part_path(op, node, &boot->image.kernel.digest, &boot->kernel, err));
    KLP_TRY(part_path(op, node, &boot->image.initramfs.digest, &boot->initramfs, err));
    boot->config.kernel_image_path = boot->kernel;
    boot->config.initrd_path = boot->initramfs;
    boot->config.kernel_args = boot->image.cmdline;
    return KLP_OK;
}

/* Everything that makes a template what it is. The TSC rate is measured, so it wobbles: the gate
 * has a tolerance. */
static kelpie_outcome template_ref(struct boot *boot, char out[KLP_REF_NAME_MAX],
                                   struct kelpie_error **err)
{
    struct klp_machine machine;
    struct klp_digest digest;
    char text[KLP_DIGEST_SIZE];
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf bytes = KLP_BUF_INIT(64 * KLP_KIB);
    KLP_REQUIRE(klp_vm_factory_machine(boot->factory, &boot->config, &machine, err));
    machine.tsc_khz = 0;
    klp_machine_encode(&machine, &bytes);
    klp_buf_append(&bytes, boot->image_digest.bytes, KLP_DIGEST_BYTES);
    KLP_REQUIRE(klp_buf_check(&bytes, "a template's key", err));
    klp_sha256_once(bytes.data, bytes.size, &digest);
    klp_digest_text(&digest, text);
    klp_format(out, KLP_REF_NAME_MAX, "templates/%s", text);
    return KLP_OK;
}

static kelpie_outcome template_capture(const struct kelpie_op *op, struct klp_node *node,
                                       const struct boot *boot,
                                       const struct klp_agent_identity *identity,
                                       struct kelpie_vm *vm, struct klp_digest *out,
                                       struct kelpie_error **err)
{
    struct klp_agent_identity sealed = {.vcpus = identity->vcpus,
                                        .memory_bytes = identity->memory_bytes,
                                        .image_digest = boot->image_digest};
    klp_random_id(op->env, sealed.id);
    klp_text_copy(sealed.name, sizeof(sealed.name), "template");
    klp_text_copy(sealed.image, sizeof(sealed.image), identity->image);
    klp_text_copy(sealed.image_version, sizeof(sealed.image_version),
                  boot->image.version[0] != 0 ? boot->image.version : "0.0.0");
    struct klp_snapshot_request request = {
        .kind = KLP_KIND_TEMPLATE, .label = "", .identity = &sealed};
    struct klp_capture capture;
    struct klp_manifest manifest;
    KLP_TRY(klp_workload_freeze(op, vm, err));
    KLP_TRY(klp_vm_capture(op, vm, KLP_HOLD_SNAPSHOT, &capture, err));
    /* Any node that restores it finds the kernel in the store by these names. */
    capture.machine.kernel = boot->image.kernel.digest;
    capture.machine.initramfs = boot->image.initramfs.digest;
    kelpie_outcome outcome =
        klp_snapshot_write(op, &node->host.snapshots, &capture, &request, &manifest, err);
    if (kelpie_is_ok(outcome)) {
        outcome = klp_snapshot_publish(op, &node->host.snapshots, &manifest, out, err);
        klp_manifest_finish(&manifest);
    }
    if (kelpie_is_ok(outcome))
        base_keep(node, out, capture.dirty); /* of a cold start: all there is of its memory */
    klp_capture_finish(&capture);
    return outcome;
}

static kelpie_outcome template_boot(const struct kelpie_op *op, struct klp_node *node,
                                    struct boot *boot, const struct klp_agent_identity *identity,
                                    const char *ref, struct klp_digest *out,
                                    struct kelpie_error **err)
{
    char id[KLP_ID_SIZE], text[KLP_DIGEST_SIZE];
    struct kelpie_vm *vm;
    klp_random_id(op->env, id);
    event_post(node, "template.boot", "", "%s on %s", identity->image,
               kelpie_vm_factory_name(boot->factory));
    KLP_TRY(kelpie_vm_create(op, boot->factory, id, &boot->config, &vm, err));
    kelpie_outcome outcome = kelpie_vm_start(op, vm, err);
    if (kelpie_is_ok(outcome))
        outcome = template_capture(op, node, boot, identity, vm, out, err);
    struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
    kelpie_vm_destroy(&cleanup, vm);
    KLP_TRY(klp_wrap(err, outcome, "cannot boot a template of image '%s'", identity->image));
    klp_digest_text(out, text);
    struct kelpie_error *error = NULL;
    outcome = klp_ref_create(op, node->host.snapshots.store, ref, text, strlen(text), &error);
    if (!kelpie_is_ok(outcome) && kelpie_error_code(error) != KELPIE_E_EXISTS)
        klp_log(op->env, KLP_LOG_WARN, "template.ref", "error=%s", kelpie_error_message(error));
    klp_error_clear(&error); /* another node was faster: ours serves as well */
    return KLP_OK;
}

/* The one the store has, if it is whole. */
static bool template_find(const struct kelpie_op *op, struct klp_node *node, const char *ref,
                          struct klp_digest *out)
{
    struct klp_manifest manifest;
    struct klp_store *store = node->host.snapshots.store;
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf value = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    if (!kelpie_is_ok(klp_ref_get(op, store, ref, &value, NULL)) ||
        !klp_digest_parse(klp_buf_text(&value), out) ||
        !kelpie_is_ok(klp_snapshot_load(op, &node->host.snapshots, out, &manifest, NULL)))
        return false;
    bool whole = kelpie_is_ok(klp_snapshot_check(op, &node->host.snapshots, &manifest, NULL));
    klp_manifest_finish(&manifest);
    if (!whole)
        KLP_IGNORE(klp_ref_delete(op, store, ref, NULL)); /* it can be booted anew */
    return whole;
}

static kelpie_outcome template_turn(const struct kelpie_op *op, struct klp_node *node,
                                    struct kelpie_error **err)
{
    kelpie_outcome outcome = KLP_OK;
    klp_mutex_lock(node->mutex);
    while (node->template_busy && kelpie_is_ok(outcome))
        outcome = klp_cond_wait(op, node->changed, node->mutex, err);
    if (kelpie_is_ok(outcome))
        node->template_busy = true;
    klp_mutex_unlock(node->mutex);
    return outcome;
}

kelpie_outcome template_for(const struct kelpie_op *op, struct klp_node *node,
                            struct kelpie_vm_factory *factory,
                            const struct klp_agent_identity *identity, struct klp_digest *out,
                            struct klp_digest *out_image, char out_version[24],
                            struct kelpie_error **err)
{
    __attribute__((cleanup(boot_finish))) struct boot boot = {.factory = factory};
    char ref[KLP_REF_NAME_MAX];
    KLP_TRY(boot_fill(op, node, identity, &boot, err));
    KLP_TRY(template_ref(&boot, ref, err));
    if (out_image != NULL)
        *out_image = boot.image_digest;
    if (out_version != NULL)
        klp_text_copy(out_version, 24, boot.image.version[0] != 0 ? boot.image.version : "0.0.0");
    if (template_find(op, node, ref, out))
        return KLP_OK;
    KLP_TRY(template_turn(op, node, err));
    kelpie_outcome outcome = KLP_OK;
    if (!template_find(op, node, ref, out)) {
        klp_op_phase(op, "template");
        outcome = template_boot(op, node, &boot, identity, ref, out, err);
    }
    KLP_LOCKED (node->mutex) {
        node->template_busy = false;
        klp_cond_wake(node->changed);
    }
    return outcome;
}

kelpie_outcome template_get(const struct kelpie_op *op, struct klp_host *host,
                            const struct klp_agent_identity *identity, struct klp_digest *out,
                            struct kelpie_error **err)
{
    struct klp_node *node = node_from_host(host);
    return template_for(op, node, host->factories[0], identity, out, NULL, NULL, err);
}
