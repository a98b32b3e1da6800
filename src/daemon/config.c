/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"
#include "base/name.h"
#include "env/posix/posix.h"
#include "format/machine.h"

#define LEASE_MS_DEFAULT 30000
#define LEASE_MS_MIN 300

const char daemon_config_help[] =
    "Usage: kelpied [flags]\n"
    "  --state DIR        where everything is kept (default: $KELPIE_STATE, else "
    "~/.local/state/kelpie)\n"
    "  --name NODE        this node's name in the registry (default: the host's name)\n"
    "  --listen unix:PATH the socket it serves (default: STATE/kelpied.sock)\n"
    "  --backend NAME     auto, qemu or mock (default: auto; mock is never chosen by itself)\n"
    "  --store PATH       folder of images and snapshots (default: STATE/store); may be shared by "
    "daemons\n"
    "  --registry PATH    SQLite file of who owns which agent (default: STATE/registry.db); may be "
    "shared\n"
    "  --lease DUR        how long an agent stays ours without renewal (default: 30s)\n"
    "  --config FILE      settings as KEY = VALUE lines (default: none)\n"
    "  --qemu PATH        the QEMU to use (default: found in PATH)\n"
    "  --mock-arch ARCH   what mock's guests pretend to be: x86_64 or aarch64 (default: as this "
    "host)\n"
    "  --stop-agents      stop all agents at the end; without it SIGTERM leaves them to their "
    "keepers\n"
    "  --no-spare         keep no hypervisor started ahead of the next run or restore (it costs "
    "about "
    "30 MiB)\n"
    "  --doctor           print what this machine can do as JSON, and end\n"
    "  --test-points      let KELPIE_POINT act (tests only)\n"
    "  --help, --version\n";

struct setting {
    const char *name;
    char **text; /* of a flag with a value; NULL = a switch */
    bool *flag;
};

static void text_set(char **place, const char *value)
{
    klp_mem_free(*place);
    *place = klp_mem_string(value);
}

static bool lease_set(struct daemon_config *config, const char *text, struct kelpie_error **err)
{
    KLP_CHECK(klp_parse_duration(text, &config->lease_ms, err));
    if (config->lease_ms >= LEASE_MS_MIN)
        return true;
    return klp_refuse(err, KELPIE_E_INVALID, "--lease %s is shorter than %dms", text, LEASE_MS_MIN);
}

/* Sets a named setting. *out_known false: there is none of that name. */
static bool setting_set(struct daemon_config *config, const char *name, const char *value,
                        bool *out_known, struct kelpie_error **err)
{
    const struct setting settings[] = {
        {"state", &config->state, NULL},   {"name", &config->name, NULL},
        {"listen", &config->listen, NULL}, {"backend", &config->backend, NULL},
        {"store", &config->store, NULL},   {"registry", &config->registry, NULL},
        {"qemu", &config->qemu, NULL},     {"mock-arch", &config->mock_arch, NULL},
    };
    *out_known = true;
    if (strcmp(name, "lease") == 0)
        return lease_set(config, value, err);
    for (size_t i = 0; i < KLP_COUNT(settings); i++) {
        if (strcmp(settings[i].name, name) == 0) {
            text_set(settings[i].text, value);
            return true;
        }
    }
    *out_known = false;
    return true;
}

static bool switch_set(struct daemon_config *config, const char *name)
{
    const struct setting switches[] = {
        {"test-points", NULL, &config->test_points},
        {"stop-agents", NULL, &config->stop_agents},
        {"no-spare", NULL, &config->no_spare},
        {"doctor", NULL, &config->doctor},
        {"help", NULL, &config->help},
        {"version", NULL, &config->version},
    };
    for (size_t i = 0; i < KLP_COUNT(switches); i++) {
        if (strcmp(switches[i].name, name) == 0) {
            *switches[i].flag = true;
            return true;
        }
    }
    return false;
}

static char *trimmed(char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    size_t size = strlen(text);
    while (size > 0 && strchr(" \t\r\n", text[size - 1]) != NULL)
        text[--size] = 0;
    return text;
}

static bool file_line(struct daemon_config *config, const char *path, unsigned number, char *line,
                      struct kelpie_error **err)
{
    char *key = trimmed(line);
    if (key[0] == 0 || key[0] == '#' || key[0] == ';' || key[0] == '[')
        return true;
    char *equals = strchr(key, '=');
    bool known = false;
    if (equals != NULL) {
        *equals = 0;
        if (!setting_set(config, trimmed(key), trimmed(equals + 1), &known, err))
            return klp_wrap_refusal(err, "%s:%u", path, number);
    }
    if (known)
        return true;
    return klp_refuse(err, KELPIE_E_INVALID, "%s:%u: '%s' is no setting", path, number,
                      trimmed(key));
}

static bool file_read(struct daemon_config *config, const char *path, struct kelpie_error **err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        KLP_IGNORE(klp_refuse(err, KELPIE_E_INVALID, "cannot read %s: %s", path, strerror(errno)));
        return false;
    }
    char line[4096];
    bool fine = true;
    for (unsigned number = 1; fine && fgets(line, sizeof(line), file) != NULL; number++)
        fine = file_line(config, path, number, line, err);
    fclose(file);
    return fine;
}

/* Flags in two passes: --config is read first, so that other flags win over it. */
static bool flags_read(int argc, char **argv, struct daemon_config *config, bool only_config,
                       struct kelpie_error **err)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strncmp(name, "--", 2) != 0)
            return klp_refuse(err, KELPIE_E_INVALID, "'%s' is no flag of kelpied", name);
        name += 2;
        if (switch_set(config, name))
            continue;
        char *value = strchr(argv[i], '=');
        char *key = klp_mem_string_n(name, value != NULL ? (size_t)(value - name) : strlen(name));
        bool known = true, fine = true;
        const char *text = value != NULL ? value + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (text == NULL)
            fine = klp_refuse(err, KELPIE_E_INVALID,
                              "'--%s' is no flag of kelpied, or its value is missing", key);
        else if (strcmp(key, "config") == 0)
            fine = !only_config || file_read(config, text, err);
        else if (!only_config)
            fine = setting_set(config, key, text, &known, err);
        if (fine && !known)
            fine = klp_refuse(err, KELPIE_E_INVALID, "'--%s' is no flag of kelpied", key);
        klp_mem_free(key);
        KLP_CHECK(fine);
    }
    return true;
}

static bool environment_check(struct kelpie_error **err)
{
    static const char *const known[] = {"KELPIE_STATE",   "KELPIE_HOST", "KELPIE_POINT",
                                        "KELPIE_DEBUG",   "KELPIE_BIN",  "KELPIE_MOCK_FAULT",
                                        "KELPIE_LIBEXEC", NULL};
    for (char **at = environ; *at != NULL; at++) {
        if (strncmp(*at, "KELPIE_", 7) != 0)
            continue;
        size_t size = strcspn(*at, "="), i = 0;
        while (known[i] != NULL && (strlen(known[i]) != size || strncmp(known[i], *at, size) != 0))
            i++;
        if (known[i] == NULL)
            return klp_refuse(err, KELPIE_E_INVALID, "environment: '%.*s' is no setting of Kelpie",
                              (int)size, *at);
    }
    return true;
}

static char *state_default(void)
{
    const char *kelpie = getenv("KELPIE_STATE"), *xdg = getenv("XDG_STATE_HOME"),
               *home = getenv("HOME");
    if (kelpie != NULL && kelpie[0] != 0)
        return klp_mem_string(kelpie);
    if (xdg != NULL && xdg[0] == '/')
        return klp_text("%s/kelpie", xdg);
    return klp_text("%s/.local/state/kelpie", home != NULL ? home : "/var/lib");
}

static char *name_default(void)
{
    char host[KLP_NAME_SIZE] = "";
    if (gethostname(host, sizeof(host) - 1) != 0)
        host[0] = 0;
    for (char *at = host; *at != 0; at++) {
        if (*at >= 'A' && *at <= 'Z')
            *at = (char)(*at - 'A' + 'a');
        else if (!((*at >= 'a' && *at <= 'z') || (*at >= '0' && *at <= '9')))
            *at = '-';
    }
    return klp_mem_string(klp_name_is_valid(host) ? host : "node");
}

static void defaults_fill(struct daemon_config *config)
{
    if (config->state == NULL)
        config->state = state_default();
    if (config->name == NULL)
        config->name = name_default();
    if (config->backend == NULL)
        config->backend = klp_mem_string("auto");
    if (config->listen == NULL)
        config->listen = klp_text("unix:%s/kelpied.sock", config->state);
    if (config->store == NULL)
        config->store = klp_text("%s/store", config->state);
    if (config->registry == NULL)
        config->registry = klp_text("%s/registry.db", config->state);
    if (config->lease_ms == 0)
        config->lease_ms = LEASE_MS_DEFAULT;
}

static bool values_check(const struct daemon_config *config, struct kelpie_error **err)
{
    KLP_CHECK(klp_name_check("node", config->name, err));
    if (strncmp(config->listen, "unix:", 5) != 0 || config->listen[5] != '/')
        return klp_refuse(err, KELPIE_E_INVALID, "--listen %s: only unix:/PATH is served yet",
                          config->listen);
    if (config->mock_arch != NULL && klp_arch_parse(config->mock_arch) == KLP_ARCH_NONE)
        return klp_refuse(err, KELPIE_E_INVALID, "--mock-arch %s is neither x86_64 nor aarch64",
                          config->mock_arch);
    if (strstr(config->store, ":") != NULL || strstr(config->registry, ":") != NULL)
        return klp_refuse(err, KELPIE_E_UNSUPPORTED,
                          "--store and --registry are paths yet, not URLs");
    return true;
}

/* Relative paths would mean another place after the daemon left this folder. */
static void path_absolute(char **path)
{
    char here[4096];
    if ((*path)[0] == '/' || getcwd(here, sizeof(here)) == NULL)
        return;
    char *absolute = klp_text("%s/%s", here, *path);
    klp_mem_free(*path);
    *path = absolute;
}

bool daemon_config_read(int argc, char **argv, struct daemon_config *config,
                        struct kelpie_error **err)
{
    *config = (struct daemon_config){.lease_ms = 0};
    KLP_CHECK(environment_check(err));
    KLP_CHECK(flags_read(argc, argv, config, true, err));
    KLP_CHECK(flags_read(argc, argv, config, false, err));
    if (config->state != NULL)
        path_absolute(&config->state);
    defaults_fill(config);
    path_absolute(&config->state);
    if (strstr(config->store, ":") == NULL)
        path_absolute(&config->store);
    if (strstr(config->registry, ":") == NULL)
        path_absolute(&config->registry);
    return values_check(config, err);
}

void daemon_config_finish(struct daemon_config *config)
{
    klp_mem_free(config->state);
    klp_mem_free(config->name);
    klp_mem_free(config->listen);
    klp_mem_free(config->backend);
    klp_mem_free(config->store);
    klp_mem_free(config->registry);
    klp_mem_free(config->qemu);
    klp_mem_free(config->mock_arch);
}
