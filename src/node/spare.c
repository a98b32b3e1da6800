/* SPDX-License-Identifier: Apache-2.0 */
/* One hypervisor more than is used: started over the template that was used last, with nothing
 * loaded, so that the next start, restore or arrival does not wait for a process to come up. It has
 * no lease and no agent; whoever takes it gives it both. A daemon that died leaves it to the next
 * one's recovery, like every VM that is nobody's. */
#include <string.h>

#include "base/fmt.h"
#include "node/inside.h"

#define SPARE_REST_MS 600 /* a burst of starts has the processors for itself */
#define SPARE_MAKE_MS 20000

static bool fits(const struct spare *spare, const struct klp_machine *machine,
                 const struct klp_layer *base)
{
    return spare->base == base && klp_machine_equal(&spare->machine, machine);
}

/* Out of the table, with its base; the mutex is held. */
static struct spare spare_out(struct klp_node *node)
{
    struct spare out = node->spare;
    node->spare = (struct spare){.vm = NULL};
    return out;
}

static void spare_free(const struct kelpie_op *op, struct spare *spare)
{
    struct kelpie_op cleanup = klp_op_cleanup(op, NODE_CLEANUP_MS);
    kelpie_vm_destroy(&cleanup, spare->vm);
    klp_layer_close(spare->base);
}

struct kelpie_vm *spare_take(struct klp_node *node, const struct klp_machine *machine,
                             struct klp_layer *base)
{
    struct spare taken = {.vm = NULL};
    struct klp_layer *former = NULL;
    struct kelpie_vm_factory *factory = factory_pick(node, machine->backend, machine->arch);
    if (!node->options.keep_spare || base == NULL || factory == NULL || !factory->ops->slow_spawn)
        return NULL;
    KLP_LOCKED (node->mutex) {
        if (node->spare.vm != NULL && fits(&node->spare, machine, base))
            taken = spare_out(node);
        former = node->spare_wish.base;
        node->spare_wish = (struct spare_wish){
            *machine, klp_layer_share(base), klp_boot_ns(node->host.env) + SPARE_REST_MS * KLP_MS};
        klp_cond_wake(node->changed);
    }
    klp_layer_close(former);
    klp_layer_close(taken.base);
    return taken.vm;
}

/* Waits until a spare is wished for that is not there, and the last wish has rested. False: the
 * node closes. */
static bool wish_wait(struct klp_node *node, struct spare *out)
{
    bool due = false;
    klp_mutex_lock(node->mutex);
    while (!due && !klp_cancel_is_raised(node->cancel)) {
        struct spare_wish *wish = &node->spare_wish;
        bool open = wish->base != NULL &&
                    (node->spare.vm == NULL || !fits(&node->spare, &wish->machine, wish->base));
        due = open && klp_boot_ns(node->host.env) >= wish->not_before_ns;
        struct kelpie_op op = {.env = node->host.env,
                               .cancel = node->cancel,
                               .deadline_ns = open ? wish->not_before_ns : KLP_NO_DEADLINE};
        if (!due)
            KLP_IGNORE(klp_cond_wait(&op, node->changed, node->mutex, NULL));
        else
            *out = (struct spare){.machine = wish->machine, .base = wish->base};
    }
    if (due)
        node->spare_wish.base = NULL;
    klp_mutex_unlock(node->mutex);
    return due;
}

static void spare_make(const struct kelpie_op *op, struct klp_node *node, struct spare *spare)
{
    struct kelpie_error *error = NULL;
    kelpie_outcome outcome = vm_create_for(op, node, &spare->machine, &spare->vm, &error);
    if (kelpie_is_ok(outcome))
        outcome = klp_vm_prepare(op, spare->vm, &spare->machine, spare->base, &error);
    if (kelpie_is_ok(outcome)) {
        klp_log(op->env, KLP_LOG_INFO, "spare.ready", "vm=%s", kelpie_vm_id(spare->vm));
        KLP_LOCKED (node->mutex) {
            node->spare = *spare;
        }
        return;
    }
    if (!klp_cancel_is_raised(node->cancel))
        klp_log(op->env, KLP_LOG_WARN, "spare.failed", "error=%s", kelpie_error_message(error));
    klp_error_clear(&error);
    spare_free(op, spare);
}

void spare_run(void *arg)
{
    struct klp_node *node = arg;
    struct spare next = {.vm = NULL}, former;
    while (wish_wait(node, &next)) {
        struct kelpie_op op = klp_op_plain(node->host.env, SPARE_MAKE_MS);
        op.cancel = node->cancel;
        KLP_LOCKED (node->mutex) {
            former = spare_out(node);
        }
        spare_free(&op, &former);
        spare_make(&op, node, &next);
    }
}

void spare_drop(const struct kelpie_op *op, struct klp_node *node)
{
    struct spare former;
    struct klp_layer *wished = NULL;
    KLP_LOCKED (node->mutex) {
        former = spare_out(node);
        wished = KLP_TAKE(&node->spare_wish.base);
    }
    spare_free(op, &former);
    klp_layer_close(wished);
}
