/* SPDX-License-Identifier: Apache-2.0 */
/* A VM's configuration: judged whole, and copied. Inside vm/ only. */
#ifndef KLP_VM_CONFIG_H
#define KLP_VM_CONFIG_H

#include "vm/vm.h"

#define KLP_VM_ENV_BYTES_MAX (48u * KLP_KIB) /* of the defaults: they travel in one guest frame */
#define KLP_VM_KERNEL_ARGS_MAX 256           /* bytes */
#define KLP_VM_HOSTNAME_MAX 63

/* A copy of its own; the fields 0 and NULL are replaced by their defaults. */
void klp_vm_config_copy(struct kelpie_vm_config *out, const struct kelpie_vm_config *config,
                        enum klp_arch arch);
void klp_vm_config_finish(struct kelpie_vm_config *config);

/* Every fault in `config`, the backend's included, as a reason of one error. `what` names whose it
 * is. */
KELPIE_MUST_USE bool klp_vm_config_check(struct kelpie_vm_factory *factory, const char *what,
                                         const struct kelpie_vm_config *config,
                                         struct klp_machine *out, struct kelpie_error **err);

#endif
