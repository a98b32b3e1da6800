/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the VM suite share. */
#ifndef TESTS_CONTRACT_VM_INSIDE_H
#define TESTS_CONTRACT_VM_INSIDE_H

#include "base/fmt.h"
#include "contract/contract.h"
#include "contract/vm.h"

#define VMS_MAX 8 /* of one test */

extern const struct contract_vm *vm_suite; /* of the run under way */
extern struct kelpie_op vm_op;             /* renewed for each test */
extern struct kelpie_vm_factory *vm_factory;

int vm_set_up(void **state);
int vm_tear_down(void **state); /* destroys what the test made, and sees that nothing is left */

struct kelpie_op vm_op_ms(uint64_t timeout_ms);
void vm_sleep_ms(uint64_t ms);
uint64_t vm_now_ms(void);
/* All are destroyed at the test's end. */
struct kelpie_vm *vm_created(void);
struct kelpie_vm *vm_running(void); /* leased to epoch 1 for long, its gate open */
void vm_keep(struct kelpie_vm *vm);
void vm_forget(struct kelpie_vm *vm); /* it is gone already */
/* One that runs, for tests that leave it as it was; shared by them, because a start is dear. */
struct kelpie_vm *vm_shared(void);
void vm_shared_end(void);
void vm_lease_long(struct kelpie_vm *vm, uint64_t epoch);

#define assert_state(vm, name) assert_state_at(vm, KELPIE_VM_##name, __FILE__, __LINE__)
void assert_state_at(struct kelpie_vm *vm, enum kelpie_vm_state state, const char *file, int line);
/* Does the guest answer within that time? It cannot while it stands still. */
bool vm_answers(struct kelpie_vm *vm, uint64_t within_ms);

/* Runs words, up to NULL; the output (stdout) as text, cut. */
struct vm_words {
    char text[256];
    struct kelpie_exec_status status;
};
struct vm_words vm_say(struct kelpie_vm *vm, const char *const *argv);
#define SAY(vm, ...) vm_say(vm, (const char *const[]){__VA_ARGS__, NULL})
/* @check finds `pages` good ones. */
void assert_filled(struct kelpie_vm *vm, unsigned pages);
unsigned vm_fill(struct kelpie_vm *vm, const char *seed); /* returns the number of pages */
uint64_t vm_count(struct kelpie_vm *vm);

/* The tests of each file, appended to `out`. */
size_t vm_state_tests(struct CMUnitTest *out);
size_t vm_exec_tests(struct CMUnitTest *out);
size_t vm_file_tests(struct CMUnitTest *out);
size_t vm_move_tests(struct CMUnitTest *out);
size_t vm_lease_tests(struct CMUnitTest *out);

#define VM_TEST(name)                                                                              \
    cmocka_unit_test_setup_teardown(test_contract_vm__##name, vm_set_up, vm_tear_down)
#define VM_TESTS(out, ...)                                                                         \
    __extension__({                                                                                \
        const struct CMUnitTest tests_[] = {__VA_ARGS__};                                          \
        memcpy(out, tests_, sizeof(tests_));                                                       \
        KLP_COUNT(tests_);                                                                         \
    })

#endif
