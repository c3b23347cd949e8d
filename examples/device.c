/* A device for tidegate, to copy from. C99 and POSIX, no libraries.
 *
 * Takes a reading each --interval-ms milliseconds and sends it over TCP or a serial
 * line, as docs/protocol.md describes: version 2 frames, postcard bodies, channels by
 * declared index, times in milliseconds since boot. Each reading is kept until the
 * gateway has acknowledged it, over any number of connections. Exits with 0 once
 * --count readings are acknowledged. Everything has a fixed size: nothing is allocated.
 * It cannot prove who it is, for which gateways ask on a network; client/ can, and takes
 * commands. There, give the [[tcp]] that this one connects to `authentication = "none"`
 * while you try it.
 *
 *     cc -std=c99 -O2 -o device device.c
 *     ./device --tcp 127.0.0.1 7411 --device pump-7
 *     ./device --serial /dev/ttyUSB0 --device pump-7 --interval-ms 500 --count 100
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 10,
    CHECKSUM = 4,
    /* Types: bit 7 from the gateway, bits 6-4 encoding (postcard is 0), 3-0 message. */
    HELLO = 0x01, READINGS = 0x03, HEARTBEAT = 0x04, GOODBYE = 0x06,
    CHALLENGE = 0x81, WELCOME = 0x82, ACK = 0x83, GATEWAY_GOODBYE = 0x86,
    MAX_KEPT = 4096,      /* readings kept at most */
    MAX_BATCH = 64,       /* readings in one message at most */
    READING_BYTES = 40,   /* a reading's postcard is shorter than this */
    MAX_BODY = 4096,      /* largest body that is sent or taken */
    MAX_FRAME = HEADER + MAX_BODY + CHECKSUM,
    ANSWER_WITHIN = 5000, /* ms for Welcome to answer Hello, and on serial for an Ack */
    RESEND_AFTER = 1000,  /* serial, ms without an Ack after which readings are sent again */
    FRAME_TIMEOUT = 500   /* serial, ms: a frame that does not go on is given up */
};

static const uint8_t MAGIC[4] = {0x12, 0x34, 0x56, 0x7f};

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
    int fd = open("/dev/urandom", O_RDONLY);
    if (fd >= 0) {
        uint64_t drawn;
        if (read(fd, &drawn, sizeof drawn) == (ssize_t)sizeof drawn)
            n = drawn;
        close(fd);
    }
    return n;
}

/* ---- writing postcard and frames --------------------------------------------- */

struct out { /* bytes that wait to be written; the callers check that there is room */
    uint8_t bytes[2 * MAX_FRAME];
    size_t length;
};

static void put_byte(struct out *out, uint8_t byte) { out->bytes[out->length++] = byte; }

static void put_varint(struct out *out, uint64_t n)
{
    for (; n >= 0x80; n >>= 7)
        put_byte(out, (uint8_t)(n | 0x80));
    put_byte(out, (uint8_t)n);
}

static void put_zigzag(struct out *out, int64_t n)
{
    put_varint(out, ((uint64_t)n << 1) ^ (n < 0 ? UINT64_MAX : 0));
}

static void put_string(struct out *out, const char *text)
{
    size_t length = strlen(text);
    put_varint(out, length);
    memcpy(out->bytes + out->length, text, length);
    out->length += length;
}

static void put_f64(struct out *out, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits); /* double is IEEE 754 here */
    for (int i = 0; i < 8; i++)
        put_byte(out, (uint8_t)(bits >> (8 * i))); /* little-endian */
}

static void put_u32_big_endian(uint8_t *at, uint32_t n)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(n >> (24 - 8 * i));
}

static uint32_t get_u32_big_endian(const uint8_t *at)
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

/* A frame is its beginning, the body put behind it, and its end. */
static size_t begin_frame(struct out *out, uint8_t type)
{
    size_t start = out->length;
    memcpy(out->bytes + start, MAGIC, 4);
    out->bytes[start + 4] = 2; /* version */
    out->bytes[start + 5] = type;
    out->length += HEADER; /* the length is filled in at the end */
    return start;
}

static void end_frame(struct out *out, size_t start)
{
    put_u32_big_endian(out->bytes + start + 6, (uint32_t)(out->length - start - HEADER));
    uint32_t crc = crc32(out->bytes + start, out->length - start);
    put_u32_big_endian(out->bytes + out->length, crc);
    out->length += CHECKSUM;
}

/* ---- reading postcard and frames --------------------------------------------- */

struct body { const uint8_t *at, *end; int bad; };

static uint64_t get_varint(struct body *body)
{
    uint64_t n = 0;
    for (int shift = 0; shift < 64 && body->at < body->end; shift += 7) {
        uint8_t byte = *body->at++;
        n |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return n;
    }
    body->bad = 1;
    return 0;
}

struct in { /* what arrived and is not yet a whole frame */
    uint8_t bytes[MAX_FRAME];
    size_t length;
    int64_t last_byte;
};

static void drop(struct in *in, size_t count)
{
    in->length -= count;
    memmove(in->bytes, in->bytes + count, in->length);
}

/* Skips what is no frame: goes on at the next byte that may begin a magic, never
 * behind a length that may be wrong. */
static void skip(struct in *in)
{
    size_t at = 1;
    while (at < in->length && in->bytes[at] != MAGIC[0])
        at++;
    drop(in, at);
}

enum found { NO_FRAME, PART_OF_A_FRAME, A_FRAME };

/* What `in` begins with. */
static enum found find_frame(const struct in *in, size_t *size)
{
    if (memcmp(in->bytes, MAGIC, in->length < 4 ? in->length : 4) != 0)
        return NO_FRAME;
    if (in->length < HEADER)
        return PART_OF_A_FRAME;
    uint32_t length = get_u32_big_endian(in->bytes + 6);
    if (in->bytes[4] != 2 || length > MAX_BODY) /* the gateway answers in our version */
        return NO_FRAME;
    *size = HEADER + length + CHECKSUM;
    if (in->length < *size)
        return PART_OF_A_FRAME;
    uint32_t crc = crc32(in->bytes, HEADER + length);
    return crc == get_u32_big_endian(in->bytes + HEADER + length) ? A_FRAME : NO_FRAME;
}

/* ---- readings: taken, and kept until they are acknowledged --------------------- */

struct reading { int64_t time; double temperature; int64_t count; };

static struct {
    const char *name;
    uint64_t session;
    struct reading kept[MAX_KEPT]; /* a ring: the reading with seq n is at n % MAX_KEPT */
    uint64_t settled;              /* the last seq that is acknowledged */
    uint64_t last;                 /* the last seq that was taken */
    uint64_t target;               /* the last seq that will be taken */
    int64_t due, interval;
} device;

/* Put your sensor here. */
static struct reading measure(uint64_t seq)
{
    struct reading reading = {now_ms(), 20.0 + (double)(seq % 100) / 10.0, (int64_t)seq};
    return reading;
}

/* Takes what is due. When the memory is full this device pauses; another might rather
 * give up its oldest readings, and say Hello again to tell. */
static void take_due(void)
{
    while (device.last < device.target && device.last - device.settled < MAX_KEPT && now_ms() >= device.due) {
        device.last++;
        device.kept[device.last % MAX_KEPT] = measure(device.last);
        device.due += device.interval;
    }
}

/* How long until there is something to take, 100 ms at most. */
static int wait_ms(void)
{
    if (device.last == device.target || device.last - device.settled == MAX_KEPT)
        return 100;
    int64_t wait = device.due - now_ms();
    return wait < 0 ? 0 : wait > 100 ? 100 : (int)wait;
}

static int done(void) { return device.settled == device.target; }

/* ---- the link ------------------------------------------------------------------ */

static const char *serial_path, *host, *port;
static int link_fd = -1;

static int open_serial(void)
{
    struct termios t;
    int fd = open(serial_path, O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return -1;
    if (tcgetattr(fd, &t) != 0) {
        close(fd);
        return -1;
    }
    /* Raw bytes, 115200 baud, 8 data bits, no parity, 1 stop bit. */
    t.c_iflag = t.c_oflag = t.c_lflag = 0;
    t.c_cflag &= ~(tcflag_t)(CSIZE | PARENB | CSTOPB);
    t.c_cflag |= CS8 | CREAD | CLOCAL;
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    cfsetispeed(&t, B115200);
    cfsetospeed(&t, B115200);
    tcsetattr(fd, TCSANOW, &t);
    tcflush(fd, TCIFLUSH);
    return fd;
}

static int open_tcp(void)
{
    struct addrinfo hints, *found = NULL;
    int fd = -1, on = 1;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, port, &hints, &found) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(found);
    if (fd >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    }
    return fd;
}

static void close_link(void)
{
    if (link_fd >= 0)
        close(link_fd);
    link_fd = -1;
}

/* Writes and reads what is possible, or waits up to `timeout` ms for it.
 * Returns 0, or -1 if the link is gone. */
static int exchange(struct out *out, struct in *in, int timeout)
{
    struct pollfd p = {link_fd, POLLIN, 0};
    if (out->length > 0)
        p.events |= POLLOUT;
    if (poll(&p, 1, timeout) < 0)
        return errno == EINTR ? 0 : -1;
    if (p.revents & POLLOUT) {
        ssize_t n = write(link_fd, out->bytes, out->length);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -1;
        if (n > 0) {
            out->length -= (size_t)n;
            memmove(out->bytes, out->bytes + n, out->length);
        }
    }
    if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
        /* There is room: what fills the buffer is a frame, or no frame and skipped. */
        ssize_t n = read(link_fd, in->bytes + in->length, sizeof in->bytes - in->length);
        if (n == 0) {
            errno = ECONNRESET;
            return -1;
        }
        if (n < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : -1;
        in->length += (size_t)n;
        in->last_byte = now_ms();
    }
    return 0;
}

/* ---- the session: from Hello to Goodbye ----------------------------------------- */

static struct {
    struct out out;
    struct in in;
    int welcome;
    int64_t heartbeat_interval; /* ms */
    uint64_t max_frame, window;
    uint64_t sent;      /* the last seq that was sent */
    uint64_t highest;   /* the last seq that was ever sent */
    uint64_t batch;     /* serial: readings in one message at most, for now */
    int64_t resend_at;
    int64_t last_sent;  /* when anything was sent */
    int64_t last_heartbeat;
    int64_t last_heard;
    int64_t progress;   /* when an Ack came, or there was nothing to acknowledge */
} session;

static int64_t retry_delay = 1000;

static void send_hello(void)
{
    struct out *out = &session.out;
    if (serial_path)
        tcflush(link_fd, TCIFLUSH); /* what is still there is not for this session */
    size_t frame = begin_frame(out, HELLO);
    put_string(out, device.name);
    put_varint(out, device.session);
    put_varint(out, 1); /* clock: since boot */
    put_zigzag(out, now_ms());
    put_byte(out, 1); /* firmware: present */
    put_string(out, "device.c 1");
    put_varint(out, 2); /* two channels: index, name, unit */
    put_varint(out, 0);
    put_string(out, "temperature");
    put_byte(out, 1);
    put_string(out, "\xc2\xb0" "C");
    put_varint(out, 1);
    put_string(out, "count");
    put_byte(out, 0);
    put_varint(out, device.settled + 1); /* the oldest that is kept */
    end_frame(out, frame);
    session.last_sent = now_ms();
}

static void send_heartbeat(void)
{
    size_t frame = begin_frame(&session.out, HEARTBEAT);
    put_zigzag(&session.out, now_ms());
    end_frame(&session.out, frame);
    session.last_sent = session.last_heartbeat = now_ms();
}

static void send_goodbye(void)
{
    size_t frame = begin_frame(&session.out, GOODBYE);
    put_varint(&session.out, 0); /* reason: normal */
    put_string(&session.out, "");
    end_frame(&session.out, frame);
}

/* Sends what was taken and not yet sent, as far as the window goes. */
static void send_readings(void)
{
    struct out *out = &session.out;
    for (;;) {
        uint64_t outstanding = session.sent - device.settled;
        uint64_t count = device.last - session.sent;
        /* On a line that can lose a frame, what follows it is refused: one at a time. */
        if (count == 0 || outstanding >= session.window || (serial_path && outstanding > 0))
            return;
        uint64_t room = session.max_frame < MAX_BODY ? session.max_frame : MAX_BODY;
        uint64_t most = room > 2 * READING_BYTES ? (room - READING_BYTES) / READING_BYTES : 1;
        if (most > MAX_BATCH)
            most = MAX_BATCH;
        if (serial_path && most > session.batch)
            most = session.batch;
        if (most > session.window - outstanding)
            most = session.window - outstanding;
        if (count > most)
            count = most;
        if (sizeof out->bytes - out->length < MAX_FRAME)
            return; /* later, when the buffer has room */
        if (outstanding == 0 && session.sent + count > session.highest)
            session.progress = now_ms(); /* else they are sent again */
        session.resend_at = now_ms() + RESEND_AFTER;
        size_t frame = begin_frame(out, READINGS);
        put_varint(out, session.sent + 1);
        put_byte(out, 0); /* sub: absent */
        put_varint(out, count);
        for (; count > 0; count--) {
            const struct reading *reading = &device.kept[++session.sent % MAX_KEPT];
            put_zigzag(out, reading->time);
            put_varint(out, 2); /* two values: channel by index, value by type */
            put_varint(out, 0);
            put_varint(out, 0);
            put_varint(out, 0); /* float */
            put_f64(out, reading->temperature);
            put_varint(out, 0);
            put_varint(out, 1);
            put_varint(out, 1); /* integer */
            put_zigzag(out, reading->count);
        }
        end_frame(out, frame);
        session.last_sent = now_ms();
        if (session.sent > session.highest)
            session.highest = session.sent;
    }
}

static void settle(uint64_t seq)
{
    if (seq <= device.settled || seq > device.last)
        return;
    device.settled = seq;
    if (session.sent < seq)
        session.sent = seq;
    if (session.batch < MAX_BATCH)
        session.batch++;
    session.progress = now_ms();
    retry_delay = 1000;
    printf("acked up to %llu, %llu kept\n", (unsigned long long)seq, (unsigned long long)(device.last - seq));
    fflush(stdout);
}

/* Another numbering has used this session id: a new one, in which the readings that
 * are kept begin with 1. */
static void restart_numbering(void)
{
    static struct reading moved[MAX_KEPT];
    uint64_t count = device.last - device.settled;
    for (uint64_t i = 1; i <= count; i++)
        moved[i % MAX_KEPT] = device.kept[(device.settled + i) % MAX_KEPT];
    memcpy(device.kept, moved, sizeof moved);
    device.target -= device.settled;
    device.last = count;
    device.settled = 0;
    device.session = random_u64();
}

/* Returns why the session is over, or NULL if it goes on. */
static const char *handle(uint8_t type, struct body body)
{
    static char why[200];
    if (type < 0x80)
        return NULL; /* what this device said, on a line that brings it back */
    if ((type & 0x8f) == GATEWAY_GOODBYE) { /* in any encoding */
        uint64_t reason = type & 0x70 ? 99 : get_varint(&body);
        uint64_t length = type & 0x70 ? 0 : get_varint(&body);
        if (body.bad || length > (uint64_t)(body.end - body.at))
            length = 0;
        snprintf(why, sizeof why, "the gateway said Goodbye, reason %u: %.*s", (unsigned)reason,
                 (int)(length < 150 ? length : 150), (const char *)body.at);
        return why;
    }
    if (type == CHALLENGE)
        return "the gateway asks for a key, which this example cannot prove: client/ can";
    if (type == WELCOME) {
        uint64_t settled = get_varint(&body);
        get_varint(&body); /* the gateway's time: this device shows no date */
        get_varint(&body); /* whether it is trusted */
        session.heartbeat_interval = (int64_t)get_varint(&body) * 1000;
        session.max_frame = get_varint(&body);
        session.window = get_varint(&body);
        if (body.bad)
            return "the gateway sent a Welcome that is none";
        /* Since some version it names the session that it is for. */
        if (body.at < body.end && get_varint(&body) == 1 && get_varint(&body) != device.session)
            return NULL; /* it answers the Hello of an earlier life, over a serial line */
        if (settled > device.last) {
            restart_numbering();
            return "the session id was used before";
        }
        settle(settled);
        /* Everything that is kept is sent again. Settled may be lower than what was
         * acknowledged and forgotten: Hello said so. */
        session.sent = device.settled;
        session.welcome = 1;
        session.last_heard = session.last_heartbeat = now_ms();
    } else if (session.welcome) { /* what comes before it belongs to an earlier session */
        session.last_heard = now_ms();
        if (type == ACK) {
            uint64_t seq = get_varint(&body);
            if (!body.bad && seq <= session.highest)
                settle(seq);
        }
        /* A HeartbeatReply needs no more than being heard; what is unknown is ignored. */
    }
    return NULL;
}

/* Reads the frames that arrived. Returns why the session is over, or NULL. */
static const char *handle_frames(void)
{
    struct in *in = &session.in;
    /* The rest of a frame that is not coming must hide no other. */
    const int ended = serial_path && now_ms() - in->last_byte > FRAME_TIMEOUT;
    while (in->length > 0) {
        size_t size = 0;
        enum found found = find_frame(in, &size);
        if (found == PART_OF_A_FRAME && !ended)
            return NULL;
        if (found == A_FRAME) {
            struct body body = {in->bytes + HEADER, in->bytes + size - CHECKSUM, 0};
            const char *why = handle(in->bytes[5], body);
            drop(in, size);
            if (why)
                return why;
        } else if (serial_path) {
            skip(in);
        } else {
            return "the gateway sent what is no frame";
        }
    }
    return NULL;
}

static const char *check_time(void)
{
    int64_t now = now_ms();
    if (!session.welcome)
        return now - session.last_sent > ANSWER_WITHIN ? "no Welcome came" : NULL;
    /* Also while Readings flow: the gateway compares the clocks at each Heartbeat. */
    if (now - session.last_heartbeat > session.heartbeat_interval * 8 / 10
        && sizeof session.out.bytes - session.out.length > 64)
        send_heartbeat();
    if (now - session.last_heard > session.heartbeat_interval * 2)
        return "the gateway is silent";
    if (serial_path && session.sent > device.settled && now - session.progress > ANSWER_WITHIN)
        return "no Ack came: Readings or Ack were lost";
    if (serial_path && session.sent > device.settled && now > session.resend_at) {
        /* They are sent again, in smaller messages: noise hits those less often. */
        session.sent = device.settled;
        session.batch = session.batch > 1 ? session.batch / 2 : 1;
    }
    return NULL;
}

/* Returns why the session is over; NULL if everything is acknowledged. */
static const char *run_session(void)
{
    const char *why;
    memset(&session, 0, sizeof session);
    session.batch = MAX_BATCH;
    send_hello();
    for (;;) {
        take_due();
        if (session.welcome && done())
            break;
        if (session.welcome)
            send_readings();
        if (exchange(&session.out, &session.in, wait_ms()) != 0) {
            why = strerror(errno);
            close_link();
            return why;
        }
        if ((why = handle_frames()) != NULL || (why = check_time()) != NULL)
            return why;
    }
    if (sizeof session.out.bytes - session.out.length > 64)
        send_goodbye();
    for (int64_t until = now_ms() + ANSWER_WITHIN; session.out.length > 0 && now_ms() < until;) {
        session.in.length = 0;
        if (exchange(&session.out, &session.in, 100) != 0)
            return NULL; /* all is acknowledged: a Goodbye more or less */
    }
    if (serial_path)
        tcdrain(link_fd);
    return NULL;
}

static void usage(void)
{
    fprintf(stderr, "usage: device (--tcp HOST PORT | --serial PATH) [--device NAME] [--count N] [--interval-ms MS]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    device.name = "example-c";
    device.target = 10;
    device.interval = 1000;
    for (int i = 1; i < argc; i++) {
        int left = argc - 1 - i;
        if (!strcmp(argv[i], "--tcp") && left >= 2) {
            host = argv[++i];
            port = argv[++i];
        } else if (!strcmp(argv[i], "--serial") && left >= 1) {
            serial_path = argv[++i];
        } else if (!strcmp(argv[i], "--device") && left >= 1) {
            device.name = argv[++i];
        } else if (!strcmp(argv[i], "--count") && left >= 1) {
            device.target = strtoull(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--interval-ms") && left >= 1) {
            device.interval = strtoll(argv[++i], NULL, 10);
        } else {
            usage();
        }
    }
    if (!host == !serial_path || strlen(device.name) > 64)
        usage();

    signal(SIGPIPE, SIG_IGN);       /* writing to a closed connection is an error, no more */
    device.session = random_u64();  /* nothing survives a restart: a new numbering each time */
    device.due = now_ms();
    srand((unsigned)device.session);

    while (!done()) {
        const char *why;
        if (link_fd < 0)
            link_fd = serial_path ? open_serial() : open_tcp();
        why = link_fd < 0 ? strerror(errno) : run_session();
        if (!why)
            break;
        fprintf(stderr, "device: %s\n", why);
        if (!serial_path) /* a port stays open as long as it works */
            close_link();
        /* Wait, with a different length for each device, and go on measuring. */
        int64_t until = now_ms() + retry_delay / 2 + rand() % retry_delay;
        if (!serial_path) /* where no crowd would come back at once */
            retry_delay = retry_delay * 2 > 60000 ? 60000 : retry_delay * 2;
        while (now_ms() < until) {
            struct timespec pause = {0, 20 * 1000000};
            take_due();
            nanosleep(&pause, NULL);
        }
    }
    close_link();
    return 0;
}
