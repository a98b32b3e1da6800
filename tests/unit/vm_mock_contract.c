/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of VMs over the Mock backend: real keepers, real processes, no hypervisor. The
 * keeper is KELPIE_KEEPER, or build/kelpie-keeper. */
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contract/contract.h"
#include "contract/vm.h"

#include "env/posix/posix.h"
#include "vm/keeper/client.h"
#include "vm/keeper/keeper.h"
#include "vm/mock/mock.h"

#define GONE_MS 5000 /* a process that was killed is reaped within this */

static struct klp_env *env;
static struct klp_dir *vms_dir;
static char folder[64];
static char keeper_path[4096];

static bool mock_make(void *arg, struct kelpie_vm_factory **out, struct kelpie_error **err)
{
    struct klp_mock_options options = {.keeper_path = keeper_path};
    (void)arg;
    return klp_vm_mock_create(env, vms_dir, &options, out, err);
}

static void mock_fault(void *arg, const char *name)
{
    (void)arg;
    assert_int_equal(setenv("KELPIE_MOCK_FAULT", name, 1), 0);
}

/* Gone, or a zombie that its parent has yet to reap. */
static bool is_gone(int64_t pid)
{
    char path[64], text[256] = "";
    if (kill((pid_t)pid, 0) != 0 && errno == ESRCH)
        return true;
    snprintf(path, sizeof(path), "/proc/%lld/stat", (long long)pid);
    FILE *file = fopen(path, "r");
    size_t size = file != NULL ? fread(text, 1, sizeof(text) - 1, file) : 0;
    if (file != NULL)
        fclose(file);
    const char *end = size > 0 ? strrchr(text, ')') : NULL;
    return end == NULL || end[2] == 'Z' || end[2] == 'X';
}

static bool process_lives(void *arg, int64_t pid)
{
    struct kelpie_op op = klp_op_plain(env, GONE_MS + 1000);
    (void)arg;
    for (int i = 0; i < GONE_MS / 10; i++) {
        if (is_gone(pid))
            return false;
        KLP_IGNORE(klp_sleep_until(&op, klp_boot_ns(env) + 10 * KLP_MS, NULL));
    }
    return true;
}

static void keeper_kill(void *arg, struct kelpie_vm *vm)
{
    struct kelpie_op op = klp_op_plain(env, 5000);
    KLP_AUTO(dir) struct klp_dir *dir = NULL;
    struct klp_keeper_answer answer;
    struct klp_keeper_status status;
    (void)arg;
    CONTRACT_TRUE(klp_dir_open_at(vms_dir, kelpie_vm_id(vm), false, &dir, &err_));
    struct klp_keeper_client *client = klp_keeper_client_create(env, dir, kelpie_vm_id(vm));
    CONTRACT_OK(klp_keeper_ask(&op, client, KLP_KEEPER_STATUS, NULL, NULL, 0, &answer, &err_));
    CONTRACT_TRUE(klp_keeper_status_parse(answer.fields, &status, &err_));
    klp_keeper_answer_finish(&answer);
    klp_keeper_client_destroy(client);
    assert_true(status.keeper_pid > 1 && status.keeper_pid != getpid());
    assert_int_equal(kill((pid_t)status.keeper_pid, SIGKILL), 0);
}

static int remove_entry(const char *path, const struct stat *facts, int type, struct FTW *ftw)
{
    (void)facts;
    (void)type;
    (void)ftw;
    return remove(path);
}

static bool keeper_find(void)
{
    const char *named = getenv("KELPIE_KEEPER");
    if (realpath(named != NULL ? named : "build/kelpie-keeper", keeper_path) == NULL)
        return false;
    return access(keeper_path, X_OK) == 0;
}

int main(void)
{
    const struct klp_env_posix_options options = {
        .program = "vm_mock_contract", .level = KLP_LOG_ERROR, .test_points = true};
    struct kelpie_error *error = NULL;
    klp_text_copy(folder, sizeof(folder), "/tmp/kelpie-vm-mock-XXXXXX");
    if (!keeper_find()) {
        print_message("no kelpie-keeper: set KELPIE_KEEPER to the program\n");
        return 1;
    }
    if (mkdtemp(folder) == NULL || !klp_env_posix_create(&options, &env, &error) ||
        !klp_dir_open(env, folder, false, &vms_dir, &error)) {
        print_error("%s\n", kelpie_error_message(error));
        return 1;
    }
    const struct contract_vm suite = {.name = "vm_mock",
                                      .env = env,
                                      .make = mock_make,
                                      .config = {.memory_mib = 128},
                                      .fill_mib = 4,
                                      .fault = mock_fault,
                                      .keeper_kill = keeper_kill,
                                      .process_lives = process_lives};
    int failed = contract_vm(&suite);
    klp_dir_close(vms_dir);
    klp_env_posix_destroy(env);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
