/* The floor: a server of streams that does nothing but write, once for each event and stream.
 *
 * One epoll loop. It serves /all/ and /one/NUMBER/, and takes the orders of apps/orders.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 1 << 20, HEARTBEAT_MS = 15000, NOBODY = -1, ALL = -2 };

/* By file descriptor: NOBODY's, a stream of ALL, or of the group of this number. */
static int *groups, last_file;
static int *stream_of_group;
static int loop, listener;
static int64_t beaten;

static int64_t milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void forget(int file) {
    if (groups[file] >= 0) stream_of_group[groups[file]] = NOBODY;
    groups[file] = NOBODY;
    close(file);
}

static void write_all(int file, const char *text, int length) {
    while (length) {
        ssize_t written = send(file, text, length, MSG_NOSIGNAL);
        if (written >= 0) text += written, length -= written;
        else if (errno == EAGAIN) poll(&(struct pollfd){.fd = file, .events = POLLOUT}, 1, -1);
        else return;
    }
}

/* An event as a chunk of HTTP/1.1. */
static int event(char *chunk, int number) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    char data[256];
    int length = sprintf(data, "data: @@%08d.%020lld@", number,
                         t.tv_sec * 1000000000LL + t.tv_nsec);
    memset(data + length, 'x', 156 - length);
    strcpy(data + 156, "\n\n");
    return sprintf(chunk, "%x\r\n%s\r\n", 158, data);
}

static void to_all(const char *chunk, int length) {
    for (int file = 0; file <= last_file; file++)
        if (groups[file] == ALL) write_all(file, chunk, length);
}

static void heartbeat(void) {
    if (milliseconds() - beaten < HEARTBEAT_MS) return;
    beaten = milliseconds();
    for (int file = 0; file <= last_file; file++)
        if (groups[file] != NOBODY) write_all(file, "3\r\n:\n\n\r\n", 8);
}

static void serve(int timeout);

static int argument(const char *line, const char *name) {
    const char *found = strstr(line, name);
    return found ? atoi(found + strlen(name)) : 0;
}

static void carry_out(const char *order) {
    char chunk[512];
    int events = argument(order, "events="), count = argument(order, "groups=");
    int pace = argument(order, "milliseconds=");
    int yields = !strncmp(order, "yielding", 8), each = !strncmp(order, "each", 4);
    int64_t begun = milliseconds();
    for (int number = 1; number <= events; number++) {
        for (int64_t wait; pace && (wait = begun + (int64_t)number * pace - milliseconds()) > 0;)
            serve(wait);
        if (!each) to_all(chunk, event(chunk, number));
        for (int group = 0; each && group < count; group++)
            if (stream_of_group[group] != NOBODY)
                write_all(stream_of_group[group], chunk, event(chunk, number));
        if (yields) serve(0);
    }
}

static void answer(int file) {
    char request[65536];
    ssize_t length = read(file, request, sizeof request - 1);
    if (length <= 0) {
        if (length == 0 || errno != EAGAIN) forget(file);
        return;
    }
    request[length] = 0;
    char *path = request + 4;
    if (!strncmp(path, "/orders/", 8)) {
        /* Not served again while the order is carried out. */
        epoll_ctl(loop, EPOLL_CTL_DEL, file, NULL);
        carry_out(path + 8);
        const char *done = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nNone";
        write_all(file, done, strlen(done));
        forget(file);
        return;
    }
    groups[file] = ALL;
    if (!strncmp(path, "/one/", 5)) {
        groups[file] = atoi(path + 5);
        stream_of_group[groups[file]] = file;
    }
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                       "Cache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n"
                       "c\r\n: welcome\n\n\n\r\n";
    write_all(file, head, strlen(head));
}

static void serve(int timeout) {
    struct epoll_event events[256];
    int count = epoll_wait(loop, events, 256, timeout);
    for (int i = 0; i < count; i++) {
        int file = events[i].data.fd;
        if (file != listener) {
            answer(file);
            continue;
        }
        for (int each; (each = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
            int yes = 1;
            setsockopt(each, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            if (each > last_file) last_file = each;
            struct epoll_event event = {.events = EPOLLIN, .data.fd = each};
            epoll_ctl(loop, EPOLL_CTL_ADD, each, &event);
        }
    }
    heartbeat();
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    groups = malloc(FILES * sizeof *groups);
    stream_of_group = malloc(FILES * sizeof *stream_of_group);
    for (int number = 0; number < FILES; number++) groups[number] = stream_of_group[number] = NOBODY;
    loop = epoll_create1(0);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("listen");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event);
    beaten = milliseconds();
    for (;;) serve(1000);
}
