/* SPDX-License-Identifier: Apache-2.0 */
/* What only PID 1 does: file systems, modules, console, loopback; and the two ways a guest ends.
 * Every step that is already done, or that this kernel has not, is passed over: the agent has to
 * come up. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"

#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define MODULES_LIST "/etc/kelpie/modules"
#define TERM_WAIT_MS                                                                               \
    3000 /* for the workload to end well; the host kills when it takes too long                    \
          */

struct mount_step {
    const char *source, *path, *type, *options;
    unsigned long flags;
};

static const struct mount_step mount_steps[] = {
    {"proc", "/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", "devtmpfs", "mode=0755", MS_NOSUID},
    {"devpts", "/dev/pts", "devpts", "mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV},
    {"tmpfs", "/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV},
    {"tmpfs", "/run", "tmpfs", "mode=0755", MS_NOSUID | MS_NODEV},
    {"cgroup2", "/sys/fs/cgroup", "cgroup2", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

static void mounts_make(void)
{
    for (size_t i = 0; i < KLP_COUNT(mount_steps); i++) {
        const struct mount_step *step = &mount_steps[i];
        mkdir(step->path, 0755);
        if (mount(step->source, step->path, step->type, step->flags, step->options) < 0 &&
            errno != EBUSY)
            guest_log("cannot mount %s: %s", step->path, strerror(errno));
    }
    if (symlink("/proc/self/fd", "/dev/fd") < 0 || symlink("/proc/self/fd/0", "/dev/stdin") < 0 ||
        symlink("/proc/self/fd/1", "/dev/stdout") < 0 ||
        symlink("/proc/self/fd/2", "/dev/stderr") < 0)
        errno = 0; /* there already */
}

/* ---- modules */

static void module_load(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        guest_log("cannot load '%s': %s", path, strerror(errno));
    guest_close(&fd);
}

/* One path a line; order matters, so there is nothing to resolve. */
static void modules_load(void)
{
    static char list[16 * KLP_KIB];
    if (guest_file_read(MODULES_LIST, list, sizeof(list)) <= 0)
        return;
    for (char *line = list; *line != '\0';) {
        size_t size = strcspn(line, "\n");
        bool is_last = line[size] == '\0';
        line[size] = '\0';
        if (size > 0 && line[0] != '#')
            module_load(line);
        line += size + (is_last ? 0 : 1);
    }
}

/* ---- console */

/* A serial driver opens ports that are not there; only a real one is a terminal. */
static int console_open(void)
{
    static const char *const names[] = {"/dev/hvc0", "/dev/ttyS0", "/dev/ttyAMA0", "/dev/console"};
    for (size_t i = 0; i < KLP_COUNT(names); i++) {
        int fd = open(names[i], O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0 && isatty(fd))
            return fd;
        guest_close(&fd);
    }
    return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static void console_take(void)
{
    int fd = console_open();
    if (fd < 0)
        return;
    for (int to = 0; to <= 2; to++)
        dup2(fd, to);
    if (fd > 2)
        close(fd);
}

/* ---- the rest of a small system */

static void file_provide(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        guest_log("cannot write '%s': %s", path, strerror(errno));
    guest_close(&fd);
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
    guest_close(&fd);
}

/* Until the host says another with SETUP. */
static void hostname_take(void)
{
    char name[65];
    if (guest_file_read("/etc/hostname", name, sizeof(name)) <= 0)
        memcpy(name, "kelpie", sizeof("kelpie"));
    size_t size = strcspn(name, " \t\n");
    if (size > 0 && sethostname(name, size) < 0)
        guest_log("cannot set the host name: %s", strerror(errno));
}

/* What every UNIQUE writes is there from the boot on, and the boot id's place is taken: a clone
 * then only writes over it. */
static void identity_provide(struct guest *g)
{
    uint8_t id[16];
    char text[64];
    ssize_t size = guest_file_read(BOOT_ID, text, sizeof(text));
    if (getrandom(id, sizeof(id), 0) == (ssize_t)sizeof(id)) {
        char hex[2 * sizeof(id) + 2];
        klp_hex_encode(id, sizeof(id), hex);
        memcpy(hex + 2 * sizeof(id), "\n", 2);
        file_provide("/etc/machine-id", hex);
    }
    if (!guest_publish_generation(g) || size <= 0 ||
        !guest_file_rewrite("/run/kelpie/boot_id", text, (size_t)size, 0444) ||
        mount("/run/kelpie/boot_id", BOOT_ID, NULL, MS_BIND, NULL) < 0)
        guest_log("cannot prepare the files of its identity: %s", strerror(errno));
}

void guest_init_system(struct guest *g)
{
    umask(022);
    mkdir("/etc", 0755);
    mkdir("/root", 0700);
    mounts_make();
    modules_load();
    console_take();
    file_provide("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:"
                                "/bin/false\n");
    file_provide("/etc/group", "root:x:0:\nnogroup:x:65534:\n");
    file_provide("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    hostname_take();
    loopback_up();
    identity_provide(g);
    reboot(RB_DISABLE_CAD);
}

/* ---- ends */

static void children_wait(uint64_t limit_ms)
{
    uint64_t until = guest_now_ms() + limit_ms;
    struct timespec little = {0, 5000000};
    while (guest_now_ms() < until) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0)
            return; /* none are left */
        if (pid == 0)
            nanosleep(&little, NULL);
    }
}

void guest_power_off(struct guest *g)
{
    if (g->options.is_init) {
        kill(-1, SIGTERM);
        if (g->freeze.state == GUEST_THAWED) /* a frozen one could not act on it */
            children_wait(TERM_WAIT_MS);
        kill(-1, SIGKILL);
    }
    sync();
    reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT); /* a machine without a switch: its monitor takes a reset for the end */
    _exit(0);
}

static void file_say(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        errno = 0;
    guest_close(&fd);
}

void guest_crash(const struct guest *g)
{
    guest_log("crash: this guest was told to die");
    if (g->options.system) {
        file_say("/dev/kmsg", "kelpie-guest: crash: this guest was told to die\n");
        file_say("/proc/sys/kernel/sysrq", "1");
        file_say("/proc/sysrq-trigger", "c");
    }
    if (g->options.is_init)
        _exit(1); /* the kernel panics when PID 1 ends */
    abort();
}
