/* The client of tidegate_client.h on a POSIX system, over TCP or a serial line, as a
 * simulated sensor. On a microcontroller, what stands here is yours to write.
 *
 *     cc -std=c99 -O2 -o client posix.c tidegate_client.c sha256.c
 *     ./client --tcp 127.0.0.1 7411 --device pump-7
 *     TIDEGATE_SECRET=$(cat pumps.secret) ./client --tcp gateway 7411 --device pump-7 --key pumps
 *     ./client --serial /dev/ttyUSB0 --count 100
 *
 * `tidegate key new pumps --device 'pump-*' > pumps.secret` on the gateway makes the key.
 * Takes a reading each --interval-ms milliseconds, and exits with 0 once --count readings
 * are acknowledged. Does the commands `set-interval` (payload {"ms": N}) and `blink`, which
 * takes a while.
 */
#define _POSIX_C_SOURCE 200809L

#include "tidegate_client.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

struct link { const char *host, *port, *path; int fd, connecting; };

static uint32_t now_ms(void *context)
{
    struct timespec t;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint32_t)((uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000);
}

/* ---- transport ------------------------------------------------------------------- */

static void close_link(void *context)
{
    struct link *link = context;
    if (link->fd >= 0)
        close(link->fd);
    link->fd = -1;
    link->connecting = 0;
}

static int failed(struct link *link)
{
    close_link(link);
    return -1;
}

static int open_serial(void *context)
{
    struct link *link = context;
    struct termios t;
    link->fd = open(link->path, O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (link->fd < 0 || tcgetattr(link->fd, &t) != 0)
        return failed(link);
    /* Raw bytes, 115200 baud, 8 data bits, no parity, 1 stop bit. */
    t.c_iflag = t.c_oflag = t.c_lflag = 0;
    t.c_cflag &= ~(tcflag_t)(CSIZE | PARENB | CSTOPB);
    t.c_cflag |= CS8 | CREAD | CLOCAL;
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    cfsetispeed(&t, B115200);
    cfsetospeed(&t, B115200);
    tcsetattr(link->fd, TCSANOW, &t);
    tcflush(link->fd, TCIFLUSH);
    return 1;
}

static int open_tcp(void *context)
{
    struct link *link = context;
    int error = 0, on = 1;
    socklen_t size = sizeof error;
    if (!link->connecting) {
        struct addrinfo hints, *found = NULL;
        memset(&hints, 0, sizeof hints);
        hints.ai_socktype = SOCK_STREAM;
        if (getaddrinfo(link->host, link->port, &hints, &found) != 0)
            return -1;
        link->fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
        if (link->fd >= 0) {
            fcntl(link->fd, F_SETFL, fcntl(link->fd, F_GETFL) | O_NONBLOCK);
            setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            if (connect(link->fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS)
                close_link(link);
        }
        freeaddrinfo(found);
        if (link->fd < 0)
            return -1;
        link->connecting = 1;
    }
    struct pollfd p = {link->fd, POLLOUT, 0};
    if (poll(&p, 1, 0) == 0)
        return 0;
    link->connecting = 0;
    if (getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0)
        return failed(link);
    return 1;
}

static int transferred(ssize_t n)
{
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    return n == 0 ? -1 : (int)n; /* the other side closed */
}

static int read_link(void *context, uint8_t *bytes, size_t size)
{
    return transferred(read(((struct link *)context)->fd, bytes, size));
}

static int write_link(void *context, const uint8_t *bytes, size_t size)
{
    return transferred(write(((struct link *)context)->fd, bytes, size));
}

/* ---- the device -------------------------------------------------------------------- */

enum { TEMPERATURE, COUNT };
static const struct tg_channel channels[] = {{"temperature", "\302\260C"}, {"count", NULL}};

static struct device {
    struct tg_client client;
    uint64_t taken, target;
    uint32_t interval, due;
    char blinking[TG_MAX_ID + 1]; /* the command under way */
    uint32_t blinking_until;
} device;

static void print(const char *what, const char *detail)
{
    printf("client: %s%s%s\n", what, *detail ? ": " : "", detail);
    fflush(stdout);
}

static void log_it(void *context, const char *what, const char *detail)
{
    (void)context;
    print(what, detail);
}

static enum tg_result do_command(void *context, const struct tg_command *command, char *answer)
{
    struct device *d = context;
    print("command", command->name);
    if (!strcmp(command->name, "set-interval")) {
        unsigned ms;
        if (!command->payload || sscanf(command->payload, " { \"ms\" : %u }", &ms) != 1 || ms == 0) {
            strcpy(answer, "{\"error\":\"no interval in ms\"}");
            return TG_FAILED;
        }
        snprintf(answer, TG_MAX_ANSWER, "{\"before\":%u}", (unsigned)d->interval);
        d->interval = ms;
        return TG_DONE;
    }
    if (!strcmp(command->name, "blink") && !*d->blinking) {
        strcpy(d->blinking, command->id);
        d->blinking_until = now_ms(NULL) + 300;
        return TG_LATER;
    }
    return TG_REJECTED;
}

/* Put your sensor here. What finds no room is taken later, as it is only simulated. */
static void take_due(struct device *d)
{
    while (d->taken < d->target && (int32_t)(now_ms(NULL) - d->due) >= 0) {
        struct tg_value values[2] = {
            tg_float(TEMPERATURE, 20.0 + (double)((d->taken + 1) % 100) / 10.0),
            tg_integer(COUNT, (int64_t)d->taken + 1),
        };
        if (!tg_record(&d->client, values, 2))
            return;
        d->taken++;
        d->due += d->interval;
    }
}

static uint64_t random_u64(void)
{
    uint64_t n = 0;
    FILE *random = fopen("/dev/urandom", "rb");
    if (!random || fread(&n, sizeof n, 1, random) != 1) {
        fprintf(stderr, "client: no random numbers\n");
        exit(1);
    }
    fclose(random);
    return n ? n : 1;
}

static int read_secret(uint8_t secret[32])
{
    const char *hex = getenv("TIDEGATE_SECRET");
    if (!hex || strlen(hex) != 64 || strspn(hex, "0123456789abcdefABCDEF") != 64)
        return 0;
    for (int i = 0; i < 32; i++) {
        char digits[3] = {hex[2 * i], hex[2 * i + 1], 0};
        secret[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return 1;
}

static void usage(void)
{
    fprintf(stderr, "usage: client (--tcp HOST PORT | --serial PATH) [--device NAME] [--count N] [--interval-ms MS]\n"
                    "              [--memory BYTES] [--give-up-oldest] [--key NAME, secret in TIDEGATE_SECRET]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static uint8_t memory[1 << 20];
    static uint8_t secret[32];
    struct link link = {NULL, NULL, NULL, -1, 0};
    struct device *d = &device;
    struct tg_config config;
    memset(&config, 0, sizeof config);
    config.device = "example-client";
    config.firmware = "posix.c 1";
    config.channels = channels;
    config.channel_count = sizeof channels / sizeof *channels;
    config.memory = memory;
    config.memory_size = 16 * 1024;
    config.command = do_command;
    config.command_context = d;
    config.log = log_it;
    d->target = 10;
    d->interval = 1000;
    for (int i = 1; i < argc; i++) {
        int left = argc - 1 - i;
        if (!strcmp(argv[i], "--tcp") && left >= 2) {
            link.host = argv[++i];
            link.port = argv[++i];
        } else if (!strcmp(argv[i], "--serial") && left >= 1) {
            link.path = argv[++i];
        } else if (!strcmp(argv[i], "--device") && left >= 1) {
            config.device = argv[++i];
        } else if (!strcmp(argv[i], "--count") && left >= 1) {
            d->target = strtoull(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--interval-ms") && left >= 1) {
            d->interval = (uint32_t)strtoul(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--memory") && left >= 1) {
            config.memory_size = strtoul(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--give-up-oldest")) {
            config.give_up_oldest = 1;
        } else if (!strcmp(argv[i], "--key") && left >= 1) {
            config.key = argv[++i];
            config.secret = secret;
        } else {
            usage();
        }
    }
    if (!link.host == !link.path || config.memory_size > sizeof memory)
        usage();
    if (config.key && !read_secret(secret)) {
        fprintf(stderr, "client: TIDEGATE_SECRET has to be the 64 hexadecimal digits that `tidegate key new` printed\n");
        return 2;
    }
    config.transport.context = &link;
    config.transport.open = link.path ? open_serial : open_tcp;
    config.transport.read = read_link;
    config.transport.write = write_link;
    config.transport.close = close_link;
    config.transport.now_ms = now_ms;
    config.transport.serial = link.path != NULL;
    config.session = random_u64();
    signal(SIGPIPE, SIG_IGN); /* writing to a closed connection is an error, no more */
    if (!tg_init(&d->client, &config)) {
        fprintf(stderr, "client: the configuration cannot work\n");
        return 2;
    }
    d->due = now_ms(NULL);
    int told_time = 0;
    while (!tg_stopped(&d->client)) {
        take_due(d);
        if (*d->blinking && (int32_t)(now_ms(NULL) - d->blinking_until) >= 0) {
            print("blinked", d->blinking);
            tg_finish(&d->client, d->blinking, TG_DONE, "{\"blinks\":3}");
            *d->blinking = 0;
        }
        uint32_t rest = tg_poll(&d->client);
        if (!told_time && tg_wall_time(&d->client) != 0) {
            char time[32];
            snprintf(time, sizeof time, "%lld", (long long)tg_wall_time(&d->client));
            print("the time is", time);
            told_time = 1;
        }
        if (d->taken == d->target && tg_kept(&d->client) == 0)
            tg_stop(&d->client);
        if (d->taken < d->target && rest > d->interval)
            rest = d->interval;
        if (*d->blinking && rest > 50)
            rest = 50;
        struct pollfd p = {link.fd, POLLIN, 0};
        poll(&p, link.fd >= 0 && !link.connecting, (int)rest);
    }
    char lost[32];
    snprintf(lost, sizeof lost, "%llu", (unsigned long long)tg_given_up(&d->client));
    print("given up", lost);
    return 0;
}
