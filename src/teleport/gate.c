/* SPDX-License-Identifier: Apache-2.0 */
/* The compatibility gate: may this host bring that up? It touches nothing and gives every reason.
 */
#include <string.h>

#include "base/fmt.h"
#include "teleport/teleport.h"

void klp_image_ref(char out[KLP_REF_NAME_MAX], const char *name, enum klp_arch arch)
{
    klp_format(out, KLP_REF_NAME_MAX, "images/%s/%s", name, klp_arch_name(arch));
    for (char *at = out; *at != 0; at++)
        if (*at == '_')
            *at = '-';
}

/* Images are bound by digest: the same name and version with other bytes is another image. A
 * checkpoint asks for the name alone, for it brings no memory that relies on the image. */
static void image_reasons(const struct kelpie_op *op, struct klp_host *host,
                          enum klp_snapshot_kind kind, enum klp_arch arch,
                          const struct klp_agent_identity *identity, const char *backend,
                          struct kelpie_error **faults)
{
    if (strcmp(backend, "mock") == 0 || strcmp(backend, "sim") == 0 || kind != KLP_KIND_CHECKPOINT)
        return; /* a snapshot with memory brings its template by digest: nothing of the image is
                   read */
    char name[KLP_REF_NAME_MAX];
    klp_image_ref(name, identity->image, arch);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf value = KLP_BUF_INIT(KLP_REF_VALUE_MAX);
    if (!kelpie_is_ok(klp_ref_get(op, host->snapshots.store, name, &value, NULL)))
        klp_error_reason_add(faults, "image: node '%s' has no image '%s' for %s", host->node,
                             identity->image, klp_arch_name(arch));
}

/* The first factory that takes the machine; otherwise the reasons of the one of its backend, or
 * that there is none. */
static struct kelpie_vm_factory *
factory_find(struct klp_host *host, const struct klp_machine *machine, struct kelpie_error **faults)
{
    bool backend_there = false;
    for (size_t i = 0; i < host->factory_count; i++) {
        struct kelpie_vm_factory *factory = host->factories[i];
        struct kelpie_error *error = NULL;
        if (strcmp(kelpie_vm_factory_name(factory), machine->backend) != 0)
            continue;
        backend_there = true;
        if (klp_vm_factory_accepts(factory, machine, &error))
            return factory;
        for (size_t reason = 0; reason < kelpie_error_reason_count(error); reason++)
            klp_error_reason_add(faults, "%s", kelpie_error_reason(error, reason));
        if (kelpie_error_reason_count(error) == 0)
            klp_error_reason_add(faults, "%s", kelpie_error_message(error));
        klp_error_clear(&error);
    }
    if (!backend_there)
        klp_error_reason_add(faults, "backend: the snapshot is of %s, node '%s' does not run that",
                             machine->backend, host->node);
    return NULL;
}

kelpie_outcome klp_gate_check(const struct kelpie_op *op, struct klp_host *host,
                              enum klp_snapshot_kind kind, const struct klp_machine *machine,
                              const struct klp_agent_identity *identity,
                              struct kelpie_vm_factory **out_factory, struct kelpie_error **err)
{
    struct kelpie_error *faults = NULL;
    KLP_IGNORE(klp_fail(&faults, KELPIE_E_INCOMPATIBLE, "'%s' cannot run on node '%s'",
                        identity->name, host->node));
    struct kelpie_vm_factory *factory = NULL;
    if (kind != KLP_KIND_CHECKPOINT)
        factory = factory_find(host, machine, &faults);
    else if (host->factory_count > 0)
        factory = host->factories[0];
    else
        klp_error_reason_add(&faults, "backend: node '%s' has none", host->node);
    if (factory != NULL)
        image_reasons(op, host, kind, factory->arch, identity, kelpie_vm_factory_name(factory),
                      &faults);
    if (kelpie_error_reason_count(faults) > 0) {
        if (kind != KLP_KIND_CHECKPOINT)
            klp_error_remedy_set(&faults, "kelpie teleport %s %s --checkpoint", identity->name,
                                 host->node);
        klp_error_move(err, &faults);
        return (kelpie_outcome){KELPIE_FAIL};
    }
    klp_error_clear(&faults);
    if (out_factory != NULL)
        *out_factory = factory;
    return KLP_OK;
}
