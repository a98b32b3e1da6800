/* SPDX-License-Identifier: Apache-2.0 */
/* kelpied: the node of one host. SIGTERM leaves the VMs to their keepers; --stop-agents stops them.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/api.h"
#include "base/ext/ext.h"
#include "base/fmt.h"
#include "daemon/peer.h"
#include "daemon/wiring.h"
#include "env/posix/posix.h"

#define VERSION "0.1.0"
#define START_MS 120000
#define STOP_MS 60000
#define FILES_MAX 65536

/* The codes' own remedies speak of the client. */
static const char *remedy_of(const struct kelpie_error *error)
{
    const char *remedy = kelpie_error_remedy(error);
    if (strcmp(remedy, "kelpie --help") == 0)
        return "kelpied --help";
    return strcmp(remedy, "kelpie ps -a") == 0 ? "" : remedy;
}

static int complain(struct kelpie_error *error)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(64 * KLP_KIB);
    klp_rest_error_text(error, &text);
    fprintf(stderr, "kelpied: %s\n", klp_buf_text(&text));
    for (size_t i = 0; i < kelpie_error_reason_count(error); i++)
        fprintf(stderr, "  %s\n", kelpie_error_reason(error, i));
    if (remedy_of(error)[0] != 0)
        fprintf(stderr, "Try: %s\n", remedy_of(error));
    int status = kelpie_code_exit(kelpie_error_code(error));
    kelpie_error_free(error);
    return status;
}

static void doctor(void *arg, struct klp_json *checks)
{
    const struct wiring *wiring = arg;
    for (size_t i = 0; i < klp_json_count(wiring->checks); i++)
        klp_json_append(checks, klp_json_copy(klp_json_at(wiring->checks, i)));
}

static int doctor_print(struct wiring *wiring, const struct daemon_config *config)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(KLP_MIB);
    struct kelpie_error *error = NULL;
    KLP_IGNORE(wiring_choose(wiring, config, &error));
    klp_error_clear(&error); /* the checks say it */
    struct klp_json *items = klp_json_array();
    doctor(wiring, items);
    struct klp_json *json = klp_rest_document("checks", items);
    klp_json_print(json, &text);
    klp_json_free(json);
    printf("%s\n", klp_buf_text(&text));
    return 0;
}

/* Blocks the signals that end the daemon, so that only sigwait sees them. Before any thread. */
static void signals_block(sigset_t *out)
{
    sigemptyset(out);
    sigaddset(out, SIGTERM);
    sigaddset(out, SIGINT);
    sigaddset(out, SIGHUP);
    KLP_ASSERT(pthread_sigmask(SIG_BLOCK, out, NULL) == 0);
}

/* Keepers are started by us and outlive their use: nobody waits for them, so they must not stay as
 * zombies. */
static void children_ignore(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    KLP_ASSERT(sigaction(SIGCHLD, &ignore, NULL) == 0);
}

static void limits_raise(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0)
        return;
    files.rlim_cur = files.rlim_max < FILES_MAX ? files.rlim_max : FILES_MAX;
    setrlimit(RLIMIT_NOFILE, &files);
}

static bool serve(struct wiring *wiring, const struct daemon_config *config, int listen_fd,
                  const sigset_t *signals, struct kelpie_error **err)
{
    struct klp_node_options options = {.env = wiring->env,
                                       .name = config->name,
                                       .endpoint = config->listen,
                                       .state_dir = wiring->state_dir,
                                       .store = wiring->store,
                                       .registry = wiring->registry,
                                       .factories = wiring->factories,
                                       .factory_count = wiring->factory_count,
                                       .lease_ttl_ms = config->lease_ms,
                                       .boot_timeout_ms = START_MS,
                                       .keep_spare = !config->no_spare};
    struct klp_node *node;
    struct klp_api *api;
    struct kelpie_op op = klp_op_plain(wiring->env, START_MS);
    if (!kelpie_is_ok(klp_node_open(&op, &options, &node, err))) {
        close(listen_fd);
        return false;
    }
    struct klp_api_options serving = {.env = wiring->env,
                                      .node = node,
                                      .version = VERSION,
                                      .doctor = doctor,
                                      .arg = wiring,
                                      .spool_dir = wiring->spool_dir};
    bool fine = klp_api_start(&serving, listen_fd, &api, err);
    if (fine) {
        klp_log(wiring->env, KLP_LOG_INFO, "daemon.ready", "node=%s listen=%s", config->name,
                config->listen);
        int number;
        sigwait(signals, &number);
        klp_log(wiring->env, KLP_LOG_INFO, "daemon.stop", "signal=%d", number);
        klp_api_stop(api);
    }
    op = klp_op_plain(wiring->env, STOP_MS);
    klp_node_close(&op, node, config->stop_agents);
    return fine;
}

static bool run(struct wiring *wiring, const struct daemon_config *config, const sigset_t *signals,
                struct kelpie_error **err)
{
    int listen_fd;
    const char *path = config->listen + strlen("unix:");
    KLP_CHECK(wiring_choose(wiring, config, err));
    klp_log(wiring->env, KLP_LOG_INFO, "daemon.backend", "choice=%s", wiring->choice);
    KLP_CHECK(wiring_state(wiring, config, err));
    KLP_CHECK(klp_posix_unix_listen(path, SOCK_STREAM, &listen_fd, err));
    if (!wiring_storage(wiring, config, err) || !wiring_factory(wiring, config, err)) {
        close(listen_fd);
        unlink(path);
        return false;
    }
    bool fine = serve(wiring, config, listen_fd, signals, err);
    unlink(path);
    return fine;
}

/* A number nobody can know beforehand: clients' JSON cannot be made of keys that collide. */
static void libraries_init(void)
{
    uint32_t seed;
    KLP_ASSERT(getrandom(&seed, sizeof(seed), 0) == (ssize_t)sizeof(seed));
    klp_ext_init_seeded(seed);
    daemon_peer_init();
}

int main(int argc, char **argv)
{
    struct daemon_config config;
    struct wiring wiring = {.factory_count = 0};
    struct kelpie_error *error = NULL;
    sigset_t signals;
    signals_block(&signals);
    libraries_init();
    if (!daemon_config_read(argc, argv, &config, &error)) {
        daemon_config_finish(&config);
        return complain(error);
    }
    int status = 0;
    struct klp_env_posix_options options = {.program = "kelpied",
                                            .level = KLP_LOG_INFO,
                                            .test_points = config.test_points,
                                            .peer_call = daemon_peer_call};
    limits_raise();
    children_ignore();
    if (config.help)
        printf("%s", daemon_config_help);
    else if (config.version)
        printf("kelpied %s\n", VERSION);
    else if (!klp_env_posix_create(&options, &wiring.env, &error))
        status = complain(error);
    else if (config.doctor)
        status = doctor_print(&wiring, &config);
    else if (!run(&wiring, &config, &signals, &error)) {
        wiring_unmake(&wiring, &config);
        status = complain(error);
    }
    wiring_finish(&wiring);
    daemon_config_finish(&config);
    return status;
}
