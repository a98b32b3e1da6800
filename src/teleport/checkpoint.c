/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints: what the agent itself says of its state, as one tar in the store, and back into a
 * fresh guest. */
#include <string.h>

#include "base/fmt.h"
#include "teleport/teleport.h"

struct blob { /* agent state on its way into the store */
    const struct kelpie_op *op;
    struct klp_store_writer *writer;
    kelpie_outcome outcome;
    struct kelpie_error *error;
};

static bool blob_take(void *arg, const void *data, size_t size)
{
    struct blob *blob = arg;
    blob->outcome = klp_store_write(blob->op, blob->writer, data, size, &blob->error);
    return kelpie_is_ok(blob->outcome);
}

static kelpie_outcome state_write(const struct kelpie_op *op, struct klp_host *host,
                                  struct kelpie_vm *vm, struct klp_manifest *manifest,
                                  struct kelpie_error **err)
{
    struct klp_guest *guest;
    struct blob blob = {.op = op};
    bool existed;
    KLP_TRY(klp_vm_guest(op, vm, &guest, err));
    KLP_TRY(klp_store_begin(op, host->snapshots.store, KLP_OBJECT_BLOB, &blob.writer, err));
    kelpie_outcome outcome =
        klp_guest_get(op, guest, KLP_GUEST_CHECKPOINT, NULL, blob_take, &blob, err);
    if (!kelpie_is_ok(blob.outcome)) {
        klp_error_clear(err);
        klp_error_move(err, &blob.error);
        outcome = blob.outcome;
    }
    if (!kelpie_is_ok(outcome)) {
        klp_store_abandon(blob.writer);
        return outcome;
    }
    return klp_store_commit(op, blob.writer, &manifest->agent_state.digest,
                            &manifest->agent_state.size, &existed, err);
}

kelpie_outcome klp_checkpoint_write(const struct kelpie_op *op, struct klp_host *host,
                                    const struct klp_snapshot_request *request,
                                    struct kelpie_vm *vm, struct klp_manifest *out,
                                    struct kelpie_error **err)
{
    *out = (struct klp_manifest){.kind = KLP_KIND_CHECKPOINT,
                                 .seq = request->seq,
                                 .epoch = request->epoch,
                                 .created_wall_ns = klp_wall_ns(op->env)};
    klp_random_id(op->env, out->id);
    klp_text_copy(out->label, sizeof(out->label), request->label != NULL ? request->label : "");
    memcpy(out->generation, request->generation, sizeof(out->generation));
    if (request->env != NULL)
        out->env = klp_texts_copy(request->env);
    KLP_REQUIRE(klp_identity_copy(request->identity, &out->agent, err));
    KLP_TRY(state_write(op, host, vm, out, err));
    out->stored_bytes = out->agent_state.size;
    klp_op_bytes(op, out->agent_state.size);
    return KLP_OK;
}

struct state_input { /* agent state on its way into the guest */
    const struct kelpie_op *op;
    struct klp_store_reader *reader;
    uint64_t at, size;
    kelpie_outcome outcome;
    struct kelpie_error *error;
};

static size_t state_read(void *arg, void *out, size_t capacity)
{
    struct state_input *input = arg;
    uint64_t left = input->size - input->at;
    size_t size = left < capacity ? (size_t)left : capacity;
    if (size == 0)
        return 0;
    input->outcome = klp_store_read(input->op, input->reader, input->at, out, size, &input->error);
    if (!kelpie_is_ok(input->outcome))
        return 0;
    input->at += size;
    return size;
}

static kelpie_outcome state_put(const struct kelpie_op *op, const struct klp_checkpoint *checkpoint,
                                struct klp_guest *guest, struct kelpie_error **err)
{
    const struct klp_object_ref *state = &checkpoint->manifest->agent_state;
    struct klp_store *store = checkpoint->host->snapshots.store;
    if (state->size == 0)
        return KLP_OK;
    KLP_AUTO(store_reader) struct klp_store_reader *reader = NULL;
    struct state_input input = {.op = op};
    KLP_TRY(klp_store_verify(op, store, KLP_OBJECT_BLOB, &state->digest, err));
    KLP_TRY(klp_store_open(op, store, KLP_OBJECT_BLOB, &state->digest, &reader, &input.size, err));
    input.reader = reader;
    kelpie_outcome outcome = klp_guest_put(op, guest, "/", state_read, &input, err);
    if (!kelpie_is_ok(input.outcome)) {
        klp_error_clear(err);
        klp_error_move(err, &input.error);
        return input.outcome;
    }
    return outcome;
}

kelpie_outcome klp_checkpoint_prepare(const struct kelpie_op *op, void *arg, struct kelpie_vm *vm,
                                      struct kelpie_error **err)
{
    const struct klp_checkpoint *checkpoint = arg;
    const struct klp_manifest *manifest = checkpoint->manifest;
    struct klp_guest *guest;
    KLP_TRY(klp_vm_guest(op, vm, &guest, err));
    KLP_TRY(klp_guest_setup(op, guest, manifest->agent.name, (const char *const *)manifest->env,
                            manifest->agent.workdir, err));
    return state_put(op, checkpoint, guest, err);
}

kelpie_outcome klp_checkpoint_thawed(const struct kelpie_op *op, void *arg, struct kelpie_vm *vm,
                                     struct kelpie_error **err)
{
    const struct klp_checkpoint *checkpoint = arg;
    const struct klp_agent_identity *identity = &checkpoint->manifest->agent;
    struct klp_guest *guest;
    if (identity->argv == NULL)
        return KLP_OK;
    KLP_TRY(klp_vm_guest(op, vm, &guest, err));
    return klp_guest_main_start(op, guest, (const char *const *)identity->argv, NULL,
                                identity->workdir, err);
}
