/* SPDX-License-Identifier: Apache-2.0 */
/* Changing a record so that the outcome is known, and freezing what runs in a guest. */
#include <string.h>

#include "base/fmt.h"
#include "teleport/teleport.h"

#define DELETE_PAUSE_MS 50 /* between two readings of a registry that does not answer */

/* The fields of `current`, but what it owns: callers' copies share that. */
static void fields_take(struct klp_agent_record *record, struct klp_agent_record *current)
{
    klp_json_free(current->extra);
    current->extra = record->extra;
    *record = *current;
}

/* Another change came first. If the agent is whose it was, the caller's next one starts from what
 * is stored now. True: nothing but the revision is new, as after somebody settled. */
static bool refresh(const struct kelpie_op *op, struct klp_registry *registry,
                    struct klp_agent_record *record)
{
    struct klp_agent_record current;
    if (!kelpie_is_ok(klp_registry_get(op, registry, record->id, &current, NULL)))
        return false;
    bool same = klp_registry_says_same(record, &current);
    if (current.epoch >= record->epoch && strcmp(current.owner, record->owner) == 0)
        fields_take(record, &current);
    else
        klp_agent_record_finish(&current);
    return same;
}

static kelpie_outcome change_settle(const struct kelpie_op *op, struct klp_registry *registry,
                                    struct klp_agent_record *next, struct kelpie_error **err)
{
    struct klp_agent_record current;
    struct kelpie_error *why = NULL;
    bool happened;
    if (!kelpie_is_ok(klp_registry_settle(op, registry, next, &happened, &current, &why))) {
        klp_error_clear(&why);
        return (kelpie_outcome){KELPIE_UNKNOWN};
    }
    klp_error_clear(err);
    fields_take(next, &current);
    return happened ? KLP_OK
                    : klp_fail(err, KELPIE_E_CONFLICT, "agent '%s' was changed by node '%s'",
                               next->name, next->owner);
}

kelpie_outcome klp_record_change(const struct kelpie_op *op, struct klp_registry *registry,
                                 struct klp_agent_record *record, struct klp_agent_record *next,
                                 struct kelpie_error **err)
{
    const struct klp_agent_record wanted = *next;
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome;
    for (;;) {
        outcome = klp_registry_cas(op, registry, record, next, &error);
        if (kelpie_is_unknown(outcome))
            outcome = change_settle(op, registry, next, &error);
        if (klp_error_code(&error) != KELPIE_E_CONFLICT || !refresh(op, registry, record))
            break;
        klp_error_clear(&error);
        *next = wanted;
    }
    if (!kelpie_is_ok(outcome)) {
        *next = wanted; /* for those who try again */
        klp_error_move(err, &error);
        return outcome;
    }
    /* next may share what record owns: the record's own is dropped without freeing it twice. */
    if (record->extra != next->extra)
        klp_agent_record_finish(record);
    *record = *next;
    return KLP_OK;
}

/* After a removal that did not go well: is there something to remove still, and is it the owner's?
 */
static kelpie_outcome delete_look(const struct kelpie_op *op, struct klp_registry *registry,
                                  struct klp_agent_record *record, bool *out_gone, bool *out_again)
{
    struct klp_agent_record current;
    struct kelpie_error *why = NULL;
    kelpie_outcome outcome = klp_registry_get(op, registry, record->id, &current, &why);
    *out_gone = klp_error_code(&why) == KELPIE_E_NOT_FOUND;
    *out_again = false;
    klp_error_clear(&why);
    if (!kelpie_is_ok(outcome))
        return outcome;
    *out_again = strcmp(current.owner, record->owner) == 0;
    if (*out_again)
        fields_take(record, &current);
    else
        klp_agent_record_finish(&current);
    return KLP_OK;
}

kelpie_outcome klp_record_delete(const struct kelpie_op *op, struct klp_registry *registry,
                                 struct klp_agent_record *record, struct kelpie_error **err)
{
    for (;;) {
        struct kelpie_error *error = NULL;
        bool gone = false, again = false;
        kelpie_outcome outcome = klp_registry_delete(op, registry, record, &error);
        bool open = kelpie_is_unknown(outcome) || klp_error_code(&error) == KELPIE_E_CONFLICT;
        if (open)
            while (!kelpie_is_ok(delete_look(op, registry, record, &gone, &again)) && !gone)
                if (!kelpie_is_ok(
                        klp_sleep_until(op, klp_boot_ns(op->env) + DELETE_PAUSE_MS * KLP_MS, NULL)))
                    break;
        if (gone || (open && again))
            klp_error_clear(&error);
        if (gone)
            return KLP_OK;
        if (!again) {
            klp_error_move(err, &error);
            return outcome;
        }
    }
}

kelpie_outcome klp_lease_since(const struct kelpie_op *op, struct klp_host *host,
                               struct kelpie_vm *vm, const struct klp_agent_record *record,
                               uint64_t sent_ns, struct kelpie_error **err)
{
    uint64_t third_ns = host->lease_ttl_ms * KLP_MS / 3, now = klp_boot_ns(op->env);
    if (now - sent_ns >= third_ns) {
        sent_ns = now;
        KLP_TRY(klp_registry_renew(op, host->registry, record->id, host->node, record->epoch, err));
    }
    return klp_vm_lease(op, vm, record->epoch, sent_ns + 2 * third_ns, err);
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
