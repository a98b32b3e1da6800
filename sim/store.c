/* SPDX-License-Identifier: Apache-2.0 */
/* A store that is somewhere else: the folder's own code, reached over a way on which a call is
 * refused, takes long, or is carried out and not answered. Objects are named by what they hold, so
 * whoever does not know whether one is there writes it again. */
#include "store/store.h"

#include "sim.h"

SIM_FAULT_SITE(TELEPORT_UPLOAD_FAIL)
SIM_FAULT_SITE(TELEPORT_DOWNLOAD_FAIL)
SIM_FAULT_SITE(STORE_ANSWER_LOST)
SIM_FAULT_SITE(STORE_SLOW)

#define SLOW_MAX_NS (40 * KLP_SECOND) /* past a lease */

static const struct klp_store_ops *folder_ops; /* of store/local: the same for every world */

static uint32_t node_of(const struct kelpie_op *op)
{
    return sim_env_from(op->env)->node;
}

static kelpie_outcome way(const struct kelpie_op *op, struct kelpie_error **err)
{
    if (!fault_STORE_SLOW(node_of(op)))
        return KLP_OK;
    return klp_sleep_until(op, klp_boot_ns(op->env) + sim_fault_draw(SLOW_MAX_NS), err);
}

static kelpie_outcome begin(const struct kelpie_op *op, struct klp_store *store,
                            enum klp_object_kind kind, struct klp_store_writer **out,
                            struct kelpie_error **err)
{
    KLP_TRY(way(op, err));
    if (fault_TELEPORT_UPLOAD_FAIL(node_of(op)))
        return klp_fail(err, KELPIE_E_IO, "the store refused to take an object");
    return folder_ops->begin(op, store, kind, out, err);
}

static kelpie_outcome commit(const struct kelpie_op *op, struct klp_store_writer *writer,
                             const struct klp_digest *digest, bool *existed,
                             struct kelpie_error **err)
{
    KLP_TRY(folder_ops->commit(op, writer, digest, existed, err));
    if (fault_STORE_ANSWER_LOST(node_of(op)))
        return klp_unknown(err, "the store did not answer whether it has the object");
    return KLP_OK;
}

static kelpie_outcome open_object(const struct kelpie_op *op, struct klp_store *store,
                                  enum klp_object_kind kind, const struct klp_digest *digest,
                                  struct klp_store_reader **out, struct kelpie_error **err)
{
    KLP_TRY(way(op, err));
    if (fault_TELEPORT_DOWNLOAD_FAIL(node_of(op)))
        return klp_fail(err, KELPIE_E_UNREACHABLE, "the store did not answer");
    return folder_ops->open(op, store, kind, digest, out, err);
}

static kelpie_outcome ref_create(const struct kelpie_op *op, struct klp_store *store,
                                 const char *name, const void *value, size_t size,
                                 struct kelpie_error **err)
{
    KLP_TRY(way(op, err));
    KLP_TRY(folder_ops->ref_create(op, store, name, value, size, err));
    if (fault_STORE_ANSWER_LOST(node_of(op)))
        return klp_unknown(err, "the store did not answer whether it has the name");
    return KLP_OK;
}

void sim_store_spoil(struct klp_store *store)
{
    static struct klp_store_ops ops;
    folder_ops = store->ops;
    ops = *folder_ops;
    ops.begin = begin;
    ops.commit = commit;
    ops.open = open_object;
    ops.ref_create = ref_create;
    store->ops = &ops;
}
