/* SPDX-License-Identifier: Apache-2.0 */
/* The byte stream to the host: a virtio port, a connected socket, or a socket that is listened on.
 * A virtio port whose host side is closed reads as ended and polls as hung up for as long as it
 * lasts (qemu-lab 1.1): so it is not polled then, but looked at again on SIGIO, and now and then in
 * case that signal was sent to the past of a restored guest. */
#include "guest/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fmt.h"

#define PORTS_DIR "/sys/class/virtio-ports"
#define PORT_SEARCH_MS 5
#define PORT_SEARCH_SLOW_MS 100 /* once it is late, it may never come */
#define PORT_SEARCHES_MAX 400   /* at the quick pace */
#define PORT_CLOSED_MS 500
#define PORT_WRITE_MAX (32 * KLP_KIB) /* what the driver takes in one write */

enum { WHICH_STREAM, WHICH_LISTEN };

/* ---- opening */

static bool name_matches(const char *entry, const char *wanted)
{
    char path[300], name[128];
    klp_format(path, sizeof(path), PORTS_DIR "/%.*s/name", 200, entry);
    ssize_t size = guest_file_read(path, name, sizeof(name));
    while (size > 0 && name[size - 1] == '\n')
        name[--size] = '\0';
    return size > 0 && strcmp(name, wanted) == 0;
}

static int port_device_open(const char *device)
{
    char path[300];
    klp_format(path, sizeof(path), "/dev/%.*s", 200, device);
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0)
        fcntl(fd, F_SETOWN, getpid());
    return fd;
}

/* The driver signals data as well as the host's coming: wanted is the latter alone. */
static void port_signal(int fd, bool wanted)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, wanted ? flags | O_ASYNC : flags & ~O_ASYNC);
}

static int port_find(const char *wanted)
{
    DIR *ports = opendir(PORTS_DIR);
    int fd = -1;
    if (ports == NULL)
        return -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(ports)) != NULL;) {
        if (entry->d_name[0] != '.' && name_matches(entry->d_name, wanted))
            fd = port_device_open(entry->d_name);
    }
    closedir(ports);
    return fd;
}

static void port_search(struct guest *g)
{
    struct guest_port *port = &g->port;
    port->fd = port_find(g->options.port);
    port->state = port->fd >= 0 ? GUEST_PORT_OPEN : GUEST_PORT_ABSENT;
    /* The host announces its ports one by one, after the driver is there. */
    bool is_late = port->searches++ >= PORT_SEARCHES_MAX;
    port->retry_ms = guest_now_ms() + (is_late ? PORT_SEARCH_SLOW_MS : PORT_SEARCH_MS);
}

static bool listen_on(struct guest *g, int fd, const struct sockaddr *address, socklen_t size,
                      const char *name, struct kelpie_error **err)
{
    g->port.listen_fd = fd;
    if (fd < 0 || bind(fd, address, size) < 0 || listen(fd, 4) < 0)
        return klp_refuse(err, KELPIE_E_IO, "cannot listen on '%s': %s", name, strerror(errno));
    return true;
}

static bool listen_unix(struct guest *g, struct kelpie_error **err)
{
    const char *path = g->options.socket;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return klp_refuse(err, KELPIE_E_INVALID, "cannot listen on '%s': the path is too long",
                          path);
    memcpy(address.sun_path, path, strlen(path));
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return listen_on(g, fd, (const struct sockaddr *)&address, sizeof(address), path, err);
}

static bool listen_vsock(struct guest *g, struct kelpie_error **err)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK,
                                  .svm_cid = VMADDR_CID_ANY,
                                  .svm_port = (unsigned)g->options.vsock_port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return listen_on(g, fd, (const struct sockaddr *)&address, sizeof(address), "vsock", err);
}

bool guest_port_open(struct guest *g, struct kelpie_error **err)
{
    struct guest_port *port = &g->port;
    *port = (struct guest_port){.fd = -1, .listen_fd = -1, .retry_ms = GUEST_NEVER};
    if (g->options.socket != NULL)
        return listen_unix(g, err);
    if (g->options.vsock_port >= 0)
        return listen_vsock(g, err);
    if (g->options.fd < 0) {
        port_search(g);
        return true;
    }
    if (fcntl(g->options.fd, F_SETFL, O_NONBLOCK) < 0)
        return klp_refuse(err, KELPIE_E_INVALID, "cannot use descriptor %d: %s", g->options.fd,
                          strerror(errno));
    fcntl(g->options.fd, F_SETFD, FD_CLOEXEC);
    port->fd = g->options.fd;
    port->state = GUEST_PORT_OPEN;
    return true;
}

/* ---- losing it */

static bool port_is_virtio(const struct guest *g)
{
    return g->options.fd < 0 && g->options.socket == NULL && g->options.vsock_port < 0;
}

static void port_lost(struct guest *g)
{
    guest_session_lost(g);
    if (port_is_virtio(g)) {
        if (g->port.state == GUEST_PORT_OPEN)
            port_signal(g->port.fd, true);
        g->port.state = GUEST_PORT_CLOSED;
        g->port.retry_ms = guest_now_ms() + PORT_CLOSED_MS;
        return;
    }
    guest_close(&g->port.fd);
    g->port.state = g->port.listen_fd >= 0 ? GUEST_PORT_CLOSED : GUEST_PORT_GONE;
    if (g->port.state == GUEST_PORT_GONE)
        guest_stop(g, true);
}

/* ---- bytes */

static void port_reached(struct guest *g)
{
    if (g->port.state == GUEST_PORT_CLOSED && port_is_virtio(g))
        port_signal(g->port.fd, false);
    g->port.state = GUEST_PORT_OPEN;
}

static void port_read(struct guest *g)
{
    size_t room = sizeof(g->in) - g->in_size;
    if (room == 0 || g->port.fd < 0)
        return;
    ssize_t size = read(g->port.fd, g->in + g->in_size, room);
    if (size > 0) {
        port_reached(g);
        g->in_size += (size_t)size;
        g->in_last_ms = guest_now_ms();
    } else if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
        port_reached(g);
    } else {
        port_lost(g);
    }
}

void guest_port_flush(struct guest *g)
{
    while (g->port.state == GUEST_PORT_OPEN && guest_out_pending(g) > 0) {
        size_t size = guest_out_pending(g);
        size = size < PORT_WRITE_MAX ? size : PORT_WRITE_MAX;
        ssize_t sent = write(g->port.fd, g->out.data + g->out_sent, size);
        if (sent < 0 && errno != EAGAIN && errno != EINTR && !port_is_virtio(g))
            port_lost(g);
        if (sent <= 0)
            return;
        g->out_sent += (size_t)sent;
        if (g->out_sent == g->out.size || g->out_sent > GUEST_OUT_HIGH)
            guest_out_trim(g);
    }
}

/* ---- the loop's side */

void guest_port_poll(struct guest *g)
{
    struct guest_port *port = &g->port;
    if (port->state == GUEST_PORT_OPEN) {
        short events = guest_out_pending(g) > 0 ? POLLOUT : 0;
        /* Whoever sends faster than it reads answers has to wait. */
        if (g->in_size < sizeof(g->in) && guest_out_pending(g) < GUEST_OUT_HIGH)
            events |= POLLIN;
        guest_poll_add(g, port->fd, events, GUEST_POLL_PORT, NULL, WHICH_STREAM);
    }
    if (port->listen_fd >= 0)
        guest_poll_add(g, port->listen_fd, POLLIN, GUEST_POLL_PORT, NULL, WHICH_LISTEN);
}

/* Over vsock a program of the guest can call as well: only the host may command us. */
static bool caller_is_host(const struct guest *g, const struct sockaddr_storage *from)
{
    struct sockaddr_vm address;
    memcpy(&address, from, sizeof(address));
    return g->options.vsock_port < 0 ||
           (address.svm_family == AF_VSOCK && address.svm_cid == VMADDR_CID_HOST);
}

static void port_accept(struct guest *g)
{
    struct sockaddr_storage from = {0};
    socklen_t size = sizeof(from);
    int fd =
        accept4(g->port.listen_fd, (struct sockaddr *)&from, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (!caller_is_host(g, &from)) {
        close(fd);
        return;
    }
    if (g->port.fd >= 0) /* the newest host is the one that is there */
        port_lost(g);
    g->port.fd = fd;
    g->port.state = GUEST_PORT_OPEN;
}

void guest_port_ready(struct guest *g, int which, short events)
{
    if (which == WHICH_LISTEN) {
        port_accept(g);
        return;
    }
    if (g->port.state != GUEST_PORT_OPEN)
        return;
    if (events & POLLIN)
        port_read(g);
    else if (events & (POLLHUP | POLLERR))
        port_lost(g);
}

void guest_port_wake(struct guest *g)
{
    if (!port_is_virtio(g))
        return;
    if (g->port.state == GUEST_PORT_ABSENT)
        port_search(g);
    else if (g->port.state == GUEST_PORT_CLOSED)
        port_read(g);
    if (g->port.state == GUEST_PORT_OPEN)
        g->port.retry_ms = GUEST_NEVER;
}

uint64_t guest_port_deadline(const struct guest *g)
{
    bool is_waiting = g->port.state == GUEST_PORT_ABSENT || g->port.state == GUEST_PORT_CLOSED;
    return is_waiting && port_is_virtio(g) ? g->port.retry_ms : GUEST_NEVER;
}
