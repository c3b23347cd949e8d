/* A device for tidegate that speaks Protobuf, with nanopb. C99 and POSIX.
 *
 * Debian has nanopb as nanopb (the generator) and libnanopb-dev (the runtime):
 *
 *     cd proto && nanopb_generator.py -D .. tidegate.proto && cd ..  # tidegate.pb.c and .h
 *     cc -std=c99 -O2 -I. -o protobuf examples/protobuf.c tidegate.pb.c -lprotobuf-nanopb
 *     ./protobuf --tcp 127.0.0.1 7411 --device pump-7
 *
 * Takes a reading each --interval-ms milliseconds and keeps it until the gateway has
 * acknowledged it, over any number of connections. Exits with 0 once --count readings are
 * acknowledged. Nothing is allocated. The simplest device that loses nothing: it sends
 * one message of readings and waits for its Ack. client/ does more, and proves who it is:
 * this one cannot, and gateways ask for that on a network. There, give the [[tcp]] that it
 * connects to `authentication = "none"` while you try it.
 */
#define _POSIX_C_SOURCE 200809L

#include "tidegate.pb.h"
#include <netdb.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 10,
    CHECKSUM = 4,
    MAX_BODY = 1024, /* largest body that is sent or taken */
    PATIENCE = 5000, /* ms for a Welcome, and for the rest of a frame */
    /* Types of frames with bodies in Protobuf. */
    HELLO = 0x21, READINGS = 0x23, HEARTBEAT = 0x24, GOODBYE = 0x26,
    CHALLENGE = 0xa1, WELCOME = 0xa2, ACK = 0xa3, GATEWAY_GOODBYE = 0xa6,
    MAX_KEPT = 512   /* readings kept at most */
};

struct reading { int64_t time; double temperature; int64_t count; };

static struct {
    const char *name;
    uint64_t session;
    struct reading kept[MAX_KEPT]; /* a ring: the reading with seq n is at n % MAX_KEPT */
    uint64_t settled, taken, target;
    int64_t due, interval;
} device;

static uint8_t frame[HEADER + MAX_BODY + CHECKSUM];
static int fd = -1;

/* ---- time and chance --------------------------------------------------------- */

/* This device's clock: milliseconds since boot. */
static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint64_t random_u64(void)
{
    uint64_t n = (uint64_t)now_ms() << 20 ^ (uint64_t)getpid(); /* better than nothing */
    FILE *random = fopen("/dev/urandom", "rb");
    if (random) {
        if (fread(&n, sizeof n, 1, random) != 1)
            n ^= 1;
        fclose(random);
    }
    return n ? n : 1; /* 0 is as if it were not set */
}

/* ---- frames -------------------------------------------------------------------- */

static void put_u32(uint8_t *at, uint32_t n)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(n >> (24 - 8 * i));
}

static uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* CRC-32/ISO-HDLC, bit by bit; a table makes it faster. */
static uint32_t crc32(const uint8_t *bytes, size_t length)
{
    uint32_t crc = 0xffffffff;
    while (length--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

/* Returns NULL, or why the session is over. */
static const char *send_message(uint8_t type, const pb_msgdesc_t *fields, const void *message)
{
    pb_ostream_t body = pb_ostream_from_buffer(frame + HEADER, MAX_BODY);
    if (!pb_encode(&body, fields, message))
        return "a message is too large"; /* not with the sizes of tidegate.options */
    put_u32(frame, 0x1234567f);
    frame[4] = 2; /* version */
    frame[5] = type;
    put_u32(frame + 6, (uint32_t)body.bytes_written);
    size_t length = HEADER + body.bytes_written;
    put_u32(frame + length, crc32(frame, length));
    length += CHECKSUM;
    for (size_t at = 0; at < length;) {
        ssize_t n = write(fd, frame + at, length - at);
        if (n <= 0)
            return "the connection is gone";
        at += (size_t)n;
    }
    return NULL;
}

/* Waits up to `timeout` ms for bytes: 1 if there are some. */
static int readable(int64_t timeout)
{
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, timeout < 0 ? 0 : (int)timeout) > 0;
}

static int read_all(uint8_t *to, size_t count)
{
    while (count > 0) {
        ssize_t n = readable(PATIENCE) ? read(fd, to, count) : -1;
        if (n <= 0)
            return 0;
        to += n;
        count -= (size_t)n;
    }
    return 1;
}

/* Reads a whole frame. Returns NULL, or why the session is over. */
static const char *receive(uint8_t *type, size_t *length)
{
    if (!read_all(frame, HEADER))
        return "the connection is gone";
    *type = frame[5];
    *length = get_u32(frame + 6);
    if (get_u32(frame) != 0x1234567f || frame[4] != 2 || *length > MAX_BODY)
        return "the gateway sent what is no frame";
    if (!read_all(frame + HEADER, *length + CHECKSUM))
        return "the connection is gone";
    if (crc32(frame, HEADER + *length) != get_u32(frame + HEADER + *length))
        return "the gateway sent a frame with a wrong checksum";
    if ((*type & 0x8f) == (GATEWAY_GOODBYE & 0x8f) && *type != GATEWAY_GOODBYE)
        return "the gateway said Goodbye"; /* it counts in any encoding */
    return NULL;
}

static int decode(size_t length, const pb_msgdesc_t *fields, void *message)
{
    pb_istream_t body = pb_istream_from_buffer(frame + HEADER, length);
    return pb_decode(&body, fields, message);
}

/* ---- readings ------------------------------------------------------------------ */

/* Put your sensor here. When the memory is full this device pauses. */
static void take_due(void)
{
    while (device.taken < device.target && device.taken - device.settled < MAX_KEPT && now_ms() >= device.due) {
        struct reading *reading = &device.kept[++device.taken % MAX_KEPT];
        reading->time = now_ms();
        reading->temperature = 20.0 + (double)(device.taken % 100) / 10.0;
        reading->count = (int64_t)device.taken;
        device.due += device.interval;
    }
}

static void settle(uint64_t seq)
{
    device.settled = seq;
    printf("acked up to %llu, %llu kept\n", (unsigned long long)seq, (unsigned long long)(device.taken - seq));
    fflush(stdout);
}

/* ---- the session --------------------------------------------------------------- */

static const char *say_hello(void)
{
    static tidegate_Hello hello; /* of zeros, like all that is static */
    snprintf(hello.device, sizeof hello.device, "%s", device.name);
    hello.session = device.session;
    hello.clock = tidegate_CLOCK_SINCE_BOOT;
    hello.time = now_ms();
    hello.first = device.settled + 1;
    hello.channels_count = 2;
    hello.channels[0].index = 0;
    strcpy(hello.channels[0].name, "temperature");
    hello.channels[0].has_unit = true;
    strcpy(hello.channels[0].unit, "\302\260C");
    hello.channels[1].index = 1;
    strcpy(hello.channels[1].name, "count");
    return send_message(HELLO, tidegate_Hello_fields, &hello);
}

/* Sends what is kept, from the oldest on, as far as it fits; `*sent` is its last seq. */
static const char *send_readings(uint64_t *sent)
{
    static tidegate_Readings readings;
    const pb_size_t most = sizeof readings.samples / sizeof *readings.samples;
    readings.seq = device.settled + 1;
    readings.samples_count = 0;
    while (*sent < device.taken && readings.samples_count < most) {
        const struct reading *reading = &device.kept[++*sent % MAX_KEPT];
        tidegate_Sample *sample = &readings.samples[readings.samples_count++];
        sample->time = reading->time;
        sample->values_count = 2;
        sample->values[0].which_channel = tidegate_ChannelValue_index_tag;
        sample->values[0].channel.index = 0;
        sample->values[0].which_value = tidegate_ChannelValue_float_value_tag;
        sample->values[0].value.float_value = reading->temperature;
        sample->values[1].which_channel = tidegate_ChannelValue_index_tag;
        sample->values[1].channel.index = 1;
        sample->values[1].which_value = tidegate_ChannelValue_integer_value_tag;
        sample->values[1].value.integer_value = reading->count;
    }
    return send_message(READINGS, tidegate_Readings_fields, &readings);
}

static const char *said_goodbye(size_t length)
{
    static tidegate_Goodbye goodbye;
    return decode(length, tidegate_Goodbye_fields, &goodbye) ? goodbye.text : "the gateway said Goodbye";
}

/* Returns why the session is over; NULL if everything is acknowledged. */
static const char *run_session(void)
{
    const char *why;
    uint8_t type;
    size_t length;
    tidegate_Welcome welcome;
    if ((why = say_hello()) || (why = receive(&type, &length)))
        return why;
    if (type == CHALLENGE)
        return "the gateway asks for a key, which this example cannot prove: client/ can";
    if (type == GATEWAY_GOODBYE)
        return said_goodbye(length);
    if (type != WELCOME || !decode(length, tidegate_Welcome_fields, &welcome))
        return "no Welcome came";
    if (welcome.settled > device.taken)
        return "another device uses this name and session id";
    if (welcome.settled > device.settled)
        settle(welcome.settled);

    uint64_t sent = device.settled;
    int64_t interval = (int64_t)welcome.heartbeat_interval * 1000;
    int64_t heard = now_ms(), said = heard;
    while (device.settled < device.target) {
        take_due();
        if (sent == device.settled && device.taken > sent) {
            if ((why = send_readings(&sent)) != NULL)
                return why;
            said = now_ms();
        } else if (now_ms() - said > interval * 8 / 10) {
            tidegate_Heartbeat heartbeat = {now_ms()};
            if ((why = send_message(HEARTBEAT, tidegate_Heartbeat_fields, &heartbeat)) != NULL)
                return why;
            said = now_ms();
        }
        if (now_ms() - heard > interval * 2)
            return "the gateway is silent";
        if (!readable(device.interval < 100 ? device.interval : 100))
            continue;
        if ((why = receive(&type, &length)) != NULL)
            return why;
        heard = now_ms();
        tidegate_Ack ack;
        if (type == ACK && decode(length, tidegate_Ack_fields, &ack) && ack.seq > device.settled && ack.seq <= sent)
            settle(ack.seq);
        if (type == GATEWAY_GOODBYE)
            return said_goodbye(length);
        /* What is unknown is ignored. */
    }
    tidegate_Goodbye goodbye = {tidegate_REASON_NORMAL, ""};
    send_message(GOODBYE, tidegate_Goodbye_fields, &goodbye);
    return NULL;
}

static int connected(const char *host, const char *port)
{
    struct addrinfo hints, *found = NULL;
    int opened = -1;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return -1;
    for (struct addrinfo *a = found; a && opened < 0; a = a->ai_next) {
        opened = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (opened >= 0 && connect(opened, a->ai_addr, a->ai_addrlen) != 0) {
            close(opened);
            opened = -1;
        }
    }
    freeaddrinfo(found);
    return opened;
}

int main(int argc, char **argv)
{
    const char *host = NULL, *port = NULL;
    int64_t delay = 1000;
    device.name = "example-protobuf-c";
    device.target = 10;
    device.interval = 1000;
    for (int i = 1; i < argc; i++) {
        int left = argc - 1 - i;
        if (!strcmp(argv[i], "--tcp") && left >= 2) {
            host = argv[++i];
            port = argv[++i];
        } else if (!strcmp(argv[i], "--device") && left >= 1) {
            device.name = argv[++i];
        } else if (!strcmp(argv[i], "--count") && left >= 1) {
            device.target = strtoull(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--interval-ms") && left >= 1) {
            device.interval = strtoll(argv[++i], NULL, 10);
        } else {
            host = NULL;
            break;
        }
    }
    if (!host || strlen(device.name) > 64) {
        fprintf(stderr, "usage: protobuf --tcp HOST PORT [--device NAME] [--count N] [--interval-ms MS]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);      /* writing to a closed connection is an error, no more */
    device.session = random_u64(); /* nothing survives a restart: a new numbering each time */
    device.due = now_ms();
    srand((unsigned)device.session);
    while (device.settled < device.target) {
        uint64_t before = device.settled;
        fd = connected(host, port);
        const char *why = fd < 0 ? "cannot connect" : run_session();
        if (fd >= 0)
            close(fd);
        if (!why)
            break;
        fprintf(stderr, "protobuf: %s\n", why);
        /* Wait, with a different length for each device, and go on measuring. */
        if (device.settled > before)
            delay = 1000;
        int64_t until = now_ms() + delay / 2 + rand() % delay;
        delay = delay * 2 > 60000 ? 60000 : delay * 2;
        while (now_ms() < until) {
            struct timespec pause = {0, 20 * 1000000};
            take_due();
            nanosleep(&pause, NULL);
        }
    }
    return 0;
}
