/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-guest: the agent inside a guest, as PID 1 or below it; or, with --fd and --socket, on a
 * host for tests, where it changes nothing of that host's own. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fmt.h"

#define AGENT_FILES 4096 /* descriptors: 64 programs, 8 transfers of 128 folders */
#define WORKLOAD_CGROUP "/sys/fs/cgroup/workload"

static struct guest guest; /* one a process; large, and touched only where it is used */

static const char usage[] =
    "usage: kelpie-guest [--port NAME | --vsock PORT | --fd N | --socket PATH]\n"
    "                    [--test-root DIR] [--cgroup DIR]\n"
    "  --port NAME      virtio port to the host (default agent.0)\n"
    "  --vsock PORT     listen for the host on this vsock port\n"
    "  --fd N           a connected stream socket; changes nothing of this machine\n"
    "  --socket PATH    listen on a Unix socket; changes nothing of this machine\n"
    "  --test-root DIR  stands before /etc, /run and /var in such tests\n"
    "  --cgroup DIR     cgroup2 folder of the workload\n";

static bool number_read(const char *text, int *out)
{
    uint64_t value;
    if (!klp_parse_u64(text, strlen(text), &value) || value > INT32_MAX)
        return false;
    *out = (int)value;
    return true;
}

/* False: not an option of ours, or not a value for it. */
static bool option_take(struct guest_options *options, const char *name, const char *value)
{
    if (value == NULL)
        return false;
    if (strcmp(name, "--port") == 0)
        options->port = value;
    else if (strcmp(name, "--socket") == 0)
        options->socket = value;
    else if (strcmp(name, "--test-root") == 0)
        options->root = value;
    else if (strcmp(name, "--cgroup") == 0)
        options->cgroup = value;
    else if (strcmp(name, "--fd") == 0)
        return number_read(value, &options->fd);
    else if (strcmp(name, "--vsock") == 0)
        return number_read(value, &options->vsock_port);
    else
        return false;
    return true;
}

static bool options_read(int argc, char **argv, struct guest_options *options)
{
    for (int i = 1; i < argc; i++) {
        if (option_take(options, argv[i], i + 1 < argc ? argv[i + 1] : NULL))
            i++;
        else if (!options->is_init) /* the kernel hands PID 1 every word it does not know */
            return false;
    }
    bool on_host = options->fd >= 0 || options->socket != NULL;
    options->system = !on_host;
    if (options->system) {
        options->root = NULL;
        if (options->cgroup == NULL)
            options->cgroup = WORKLOAD_CGROUP;
    }
    return true;
}

static void descriptors_provide(void)
{
    int fd;
    do { /* 0, 1 and 2 exist from here on: no pipe of ours may land there */
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
    /* What whoever started us left open is none of the programs' business. */
    syscall(SYS_close_range, 3u, ~0u, 1u << 2 /* CLOSE_RANGE_CLOEXEC */);
}

static void limits_raise(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        return;
    rlim_t wanted = AGENT_FILES;
    if (files.rlim_max != RLIM_INFINITY && files.rlim_max < wanted)
        wanted = files.rlim_max;
    if (files.rlim_cur < wanted)
        files.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &files);
}

static void guest_prepare(struct guest *g)
{
    g->out = KLP_BUF_INIT(GUEST_OUT_MAX);
    g->workload_fd = -1;
    guest_main_init(g);
    limits_raise();
    umask(022);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    guest_signals_init();
    guest_freeze_init(g);
    guest_unique_init(g);
    guest_workload_start(g);
}

int main(int argc, char **argv)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    struct guest *g = &guest;
    g->options = (struct guest_options){
        .port = "agent.0", .fd = -1, .vsock_port = -1, .is_init = getpid() == 1};
    bool wants_help = argc == 2 && strcmp(argv[1], "--help") == 0 && !g->options.is_init;
    if (wants_help || !options_read(argc, argv, &g->options)) {
        fputs(usage, wants_help ? stdout : stderr);
        return wants_help ? 0 : 2;
    }
    if (g->options.is_init && g->options.system)
        guest_init_system(g);
    descriptors_provide();
    guest_prepare(g);
    if (!guest_port_open(g, &err)) {
        guest_log("%s", kelpie_error_message(err));
        return 1;
    }
    return guest_loop(g);
}
