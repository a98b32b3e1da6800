/* SPDX-License-Identifier: Apache-2.0 */
/* Changing a record so that the outcome is known, and freezing what runs in a guest. */
#include "base/fmt.h"
#include "teleport/teleport.h"

kelpie_outcome klp_record_change(const struct kelpie_op *op, struct klp_registry *registry,
                                 struct klp_agent_record *record, struct klp_agent_record *next,
                                 struct kelpie_error **err)
{
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = klp_registry_cas(op, registry, record, next, &error);
    if (kelpie_is_unknown(outcome)) {
        struct klp_agent_record current;
        bool happened;
        struct kelpie_error *settle_error = NULL;
        kelpie_outcome settled =
            klp_registry_settle(op, registry, next, &happened, &current, &settle_error);
        if (!kelpie_is_ok(settled)) {
            klp_error_clear(&settle_error);
            klp_error_move(err, &error);
            return outcome;
        }
        klp_error_clear(&error);
        klp_agent_record_finish(next);
        *next = current;
        outcome = happened
                      ? KLP_OK
                      : klp_fail(&error, KELPIE_E_CONFLICT, "agent '%s' was changed by node '%s'",
                                 current.name, current.owner);
    }
    if (!kelpie_is_ok(outcome)) {
        klp_error_move(err, &error);
        return outcome;
    }
    /* next may share what record owns: the record's own is dropped without freeing it twice. */
    if (record->extra != next->extra)
        klp_agent_record_finish(record);
    *record = *next;
    return KLP_OK;
}

static kelpie_outcome workload_order(const struct kelpie_op *op, struct kelpie_vm *vm,
                                     uint16_t type, const char *what, struct kelpie_error **err)
{
    struct klp_guest *guest;
    KLP_TRY(klp_vm_guest(op, vm, &guest, err));
    return klp_wrap(err, klp_guest_order(op, guest, type, err), "cannot %s the workload of %s",
                    what, kelpie_vm_id(vm));
}

kelpie_outcome klp_workload_freeze(const struct kelpie_op *op, struct kelpie_vm *vm,
                                   struct kelpie_error **err)
{
    return workload_order(op, vm, KLP_GUEST_FREEZE, "freeze", err);
}

kelpie_outcome klp_workload_thaw(const struct kelpie_op *op, struct kelpie_vm *vm,
                                 struct kelpie_error **err)
{
    return workload_order(op, vm, KLP_GUEST_THAW, "thaw", err);
}
