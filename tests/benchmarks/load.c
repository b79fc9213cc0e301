/* The load client: opens thousands of streams, counts their events, and stamps their latency.
 *
 * One epoll loop, driven by lines on its standard input, each answered by a line of JSON:
 *
 *   open COUNT IN_FLIGHT TEMPLATE VALUES   open streams; answers once all have their headers
 *   request COUNT IN_FLIGHT TEMPLATE VALUES  open, and read to the end of the connection
 *   expect                                 the next event of every stream is number 1
 *   collect TOTAL MILLISECONDS             wait for so many events, or until none has come for so
 *                                          long; answers with what has come
 *   close                                  close all
 *
 * A template is a file with an HTTP request, in which %d is the number of the stream and %s a line
 * of VALUES (a file, or - for none). An event holds @@NUMBER.NANOSECONDS@, of 8 and 20 digits.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MARK = 32, BUCKETS = 1 << 20, BUCKET_NS = 10000, SOURCES = 16, READ = 1 << 18 };
enum state { CLOSED, CONNECTING, HEAD, OPEN };

struct stream {
    int fd;
    enum state state;
    int held; /* bytes kept from the last read: a part of a mark or of the head */
    char hold[64];
    int64_t next, events;
};

static struct stream *streams;
static int capacity, used;
static int loop, port;
static char *template, **values;
static int value_count;
static char buffer[READ + 64];

/* The command under way. */
static enum { NOTHING, OPENING, COLLECTING } doing;
static int to_start, in_flight, limit, finished, failed, to_the_end, wanted_streams;
static int64_t wanted, deadline, quiet;
static int64_t began, cpu_began;

/* Counted since `expect`. */
static int64_t received, missed, repeated, ended, worst, last_arrival;
static uint32_t latencies[BUCKETS];

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static char *slurp(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) { perror(path); exit(1); }
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *text = calloc(1, size + 1);
    if (fread(text, 1, size, file) != (size_t)size) { perror(path); exit(1); }
    fclose(file);
    return text;
}

static void load_values(const char *path) {
    value_count = 0;
    if (!strcmp(path, "-")) return;
    char *text = slurp(path);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        values = realloc(values, (value_count + 1) * sizeof *values);
        values[value_count++] = line;
    }
}

static void drop(struct stream *s) {
    /* With a reset: nothing stays in TIME_WAIT, which would use up the ports. */
    struct linger linger = {1, 0};
    setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(s->fd);
    s->state = CLOSED;
}

static void done_opening(struct stream *s, int well) {
    in_flight--;
    finished++;
    if (!well) failed++;
    if (!well || to_the_end) drop(s);
}

static void start(void) {
    int number = used++;
    struct stream *s = &streams[number];
    memset(s, 0, sizeof *s);
    s->next = 1;
    s->state = CONNECTING;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    in_flight++;
    if (s->fd < 0) { in_flight--; finished++; failed++; s->state = CLOSED; return; }
    int yes = 1;
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(0x7f000002 + number % SOURCES);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(0x7f000001);
    bind(s->fd, (struct sockaddr *)&from, sizeof from);
    if (connect(s->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        done_opening(s, 0);
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = number};
    epoll_ctl(loop, EPOLL_CTL_ADD, s->fd, &event);
}

static void ask(int number) {
    struct stream *s = &streams[number];
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) { done_opening(s, 0); return; }
    static char request[65536];
    char *out = request;
    for (const char *in = template; *in; in++) {
        if (in[0] == '%' && in[1] == 'd') out += sprintf(out, "%d", number), in++;
        else if (in[0] == '%' && in[1] == 's') {
            out = stpcpy(out, value_count ? values[number % value_count] : "");
            in++;
        } else *out++ = *in;
    }
    if (write(s->fd, request, out - request) != out - request) { done_opening(s, 0); return; }
    s->state = HEAD;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
    epoll_ctl(loop, EPOLL_CTL_MOD, s->fd, &event);
}

static int64_t digits(const char *from, int count) {
    int64_t number = 0;
    for (; count--; from++) number = number * 10 + (*from - '0');
    return number;
}

/* Count the events in text; return how much of its end may be the beginning of another. */
static int count(struct stream *s, const char *text, int length, int64_t at) {
    const char *end = text + length, *place = text;
    for (;;) {
        const char *mark = memmem(place, end - place, "@@", 2);
        if (!mark) return end > place && end[-1] == '@' ? 1 : 0;
        if (end - mark < MARK) return end - mark;
        int64_t number = digits(mark + 2, 8), late = at - digits(mark + 11, 20);
        if (number >= s->next) {
            missed += number - s->next;
            s->next = number + 1;
        } else repeated++;
        received++;
        last_arrival = at;
        if (late < 0) late = 0;
        if (late > worst) worst = late;
        int64_t bucket = late / BUCKET_NS;
        latencies[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
        place = mark + MARK;
    }
}

static void take(struct stream *s) {
    for (;;) {
        memcpy(buffer, s->hold, s->held);
        ssize_t got = read(s->fd, buffer + s->held, READ);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            if (s->state == HEAD) done_opening(s, 0);
            else if (to_the_end) done_opening(s, 1);
            else { ended++; drop(s); }
            return;
        }
        char *text = buffer;
        int length = s->held + got;
        if (s->state == HEAD) {
            if (length < 12 || !memmem(text, length, "\r\n\r\n", 4)) {
                /* Only the first bytes and the last three matter. */
                if (length > 60) { memmove(text + 12, text + length - 40, 40); length = 52; }
                s->held = length;
                memcpy(s->hold, text, length);
                continue;
            }
            if (memcmp(text + 9, "200", 3)) { done_opening(s, 0); return; }
            s->state = OPEN;
            if (!to_the_end) done_opening(s, 1);
        }
        s->held = count(s, text, length, now(CLOCK_MONOTONIC));
        memcpy(s->hold, text + length - s->held, s->held);
        if (got < READ) return;
    }
}

static double percentile(double share) {
    int64_t rank = received * share, seen = 0;
    for (int bucket = 0; bucket < BUCKETS; bucket++)
        if ((seen += latencies[bucket]) > rank) return (bucket + 0.5) * BUCKET_NS / 1e6;
    return 0;
}

static void report(void) {
    int64_t t = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu_began;
    printf("{\"open\": %d, \"failed\": %d, \"received\": %ld, \"missed\": %ld, \"repeated\": %ld, "
           "\"ended\": %ld, \"p50\": %.3f, \"p99\": %.3f, \"worst\": %.3f, \"seconds\": %.6f, "
           "\"cpu\": %.6f}\n",
           finished - failed, failed, received, missed, repeated, ended, percentile(0.5),
           percentile(0.99), worst / 1e6, (t - began) / 1e9, cpu / 1e9);
    fflush(stdout);
    doing = NOTHING;
}

static void begin(void) {
    began = now(CLOCK_MONOTONIC);
    cpu_began = now(CLOCK_PROCESS_CPUTIME_ID);
}

static void command(char *line) {
    char what[16] = "", path[4096], list[4096];
    sscanf(line, "%15s", what);
    if (!strcmp(what, "open") || !strcmp(what, "request")) {
        if (sscanf(line, "%*s %d %d %4095s %4095s", &to_start, &limit, path, list) != 4) exit(2);
        template = slurp(path);
        load_values(list);
        to_the_end = *what == 'r';
        wanted_streams = to_start;
        finished = failed = in_flight = 0;
        if (used + to_start > capacity) {
            capacity = used + to_start;
            streams = realloc(streams, capacity * sizeof *streams);
        }
        doing = OPENING;
        begin();
        deadline = began + 300000000000LL;
    } else if (!strcmp(what, "expect")) {
        received = missed = repeated = ended = worst = 0;
        memset(latencies, 0, sizeof latencies);
        for (int number = 0; number < used; number++) streams[number].next = 1;
        begin();
        report();
    } else if (!strcmp(what, "collect")) {
        if (sscanf(line, "%*s %ld %ld", &wanted, &quiet) != 2) exit(2);
        quiet *= 1000000;
        last_arrival = now(CLOCK_MONOTONIC);
        doing = COLLECTING;
    } else if (!strcmp(what, "close")) {
        for (int number = 0; number < used; number++)
            if (streams[number].state != CLOSED) drop(&streams[number]);
        used = 0;
        report();
    } else exit(2);
}

static void go_on(void) {
    int64_t t = now(CLOCK_MONOTONIC);
    if (doing == OPENING) {
        while (to_start && in_flight < limit) to_start--, start();
        if (finished == wanted_streams || t > deadline) { to_the_end = 0; report(); }
    } else if (doing == COLLECTING) {
        /* Once all have come, stay a while for those that come twice. */
        if (t - last_arrival > (received >= wanted ? 50000000 : quiet)) report();
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    port = atoi(argv[1]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    loop = epoll_create1(0);
    struct epoll_event input = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, events[512];
    epoll_ctl(loop, EPOLL_CTL_ADD, 0, &input);
    for (;;) {
        int count = epoll_wait(loop, events, 512, doing ? 10 : -1);
        for (int i = 0; i < count; i++) {
            uint32_t number = events[i].data.u32;
            if (number == UINT32_MAX) {
                static char line[16384];
                ssize_t length = read(0, line, sizeof line - 1);
                if (length <= 0) return 0;
                line[length] = 0;
                command(line);
            } else if (streams[number].state == CONNECTING) ask(number);
            else if (streams[number].state != CLOSED) take(&streams[number]);
        }
        go_on();
    }
}
