// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Debian builds ksmbd.mountd without Kerberos. Preloaded into it, this answers for it what ksmbd asks when a client logs in
 * so: it takes that message out of what libnl receives, has GSSAPI accept the client's token, with the keytab that
 * Kerberos' own settings name, and tells ksmbd the user, the session's key and when the ticket expires. Everything else
 * ksmbd.mountd does itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <time.h>

#include <gssapi/gssapi.h>
#include <gssapi/gssapi_ext.h>
#include <linux/genetlink.h>

/* Of the kernel's ksmbd_netlink.h; an attribute's type is that of its message. */
enum { SPNEGO_AUTHEN_REQUEST = 14, SPNEGO_AUTHEN_RESPONSE };
enum { USER_FLAG_OK = 1 };

struct request {
	uint32_t handle;
	uint16_t token_len;
	uint8_t token[];
};

struct response {
	uint32_t handle;
	struct {
		uint32_t handle, gid, uid;
		char account[48];
		uint16_t status, hash_len;
		uint8_t hash[18];
		uint32_t expiry[2]; /* low half first; nothing reads it before Linux 7.3 */
		uint32_t reserved[14];
	} login;
	uint16_t key_len, token_len;
};

/* Linux 7.2 alone has it after that. */
struct response_7_2 {
	struct response response;
	uint64_t expiry;
};

/* What a context is valid for after its ticket has expired, as krb5.conf(5) has it by default. */
enum { CLOCKSKEW = 300 };

/* Says what GSSAPI says. */
static void explain(OM_uint32 status, int type)
{
	gss_buffer_desc text = GSS_C_EMPTY_BUFFER;
	OM_uint32 minor, more = 0;

	gss_display_status(&minor, status, type, GSS_C_NO_OID, &more, &text);
	fprintf(stderr, "kerberos: %.*s\n", (int)text.length, (char *)text.value);
	gss_release_buffer(&minor, &text);
}

static void append(char *to, size_t *at, const gss_buffer_desc *from)
{
	memcpy(to + *at, from->value, from->length);
	*at += from->length;
}

/* Makes the response to a request, and gives its length. */
static size_t answer(const struct request *request, char *to, size_t size)
{
	struct response_7_2 r = { .response.handle = request->handle };
	gss_buffer_desc token = { request->token_len, (void *)request->token };
	gss_buffer_desc reply = GSS_C_EMPTY_BUFFER, name = GSS_C_EMPTY_BUFFER;
	gss_buffer_set_t key = GSS_C_NO_BUFFER_SET;
	gss_ctx_id_t context = GSS_C_NO_CONTEXT;
	gss_name_t client = GSS_C_NO_NAME;
	OM_uint32 status, minor, lifetime;
	struct passwd *user = NULL;
	struct utsname kernel;
	size_t n = sizeof(struct response);

	uname(&kernel);
	if (!strncmp(kernel.release, "7.2.", 4))
		n = sizeof(r);
	status = gss_accept_sec_context(&minor, &context, GSS_C_NO_CREDENTIAL, &token, GSS_C_NO_CHANNEL_BINDINGS, &client,
					NULL, &reply, NULL, &lifetime, NULL);
	if (status == GSS_S_COMPLETE)
		status = gss_inquire_sec_context_by_oid(&minor, context, GSS_C_INQ_SSPI_SESSION_KEY, &key);
	if (status == GSS_S_COMPLETE)
		status = gss_display_name(&minor, client, &name, NULL);
	if (status == GSS_S_COMPLETE) {
		snprintf(r.response.login.account, sizeof(r.response.login.account), "%.*s", (int)name.length, (char *)name.value);
		r.response.login.account[strcspn(r.response.login.account, "@")] = 0;
		user = getpwnam(r.response.login.account);
	}
	if (user && n + key->elements[0].length + reply.length <= size) {
		r.expiry = time(NULL) + (int64_t)lifetime - CLOCKSKEW;
		r.response.login.expiry[0] = r.expiry;
		r.response.login.expiry[1] = r.expiry >> 32;
		r.response.login.uid = user->pw_uid;
		r.response.login.gid = user->pw_gid;
		r.response.login.status = USER_FLAG_OK;
		r.response.key_len = key->elements[0].length;
		r.response.token_len = reply.length;
	}
	memcpy(to, &r, n);
	if (r.response.login.status == USER_FLAG_OK) {
		append(to, &n, &key->elements[0]);
		append(to, &n, &reply);
	}
	if (r.response.login.status == USER_FLAG_OK) {
		fprintf(stderr, "kerberos: %s for %d s\n", r.response.login.account, (int)lifetime - CLOCKSKEW);
	} else {
		explain(status, GSS_C_GSS_CODE);
		explain(minor, GSS_C_MECH_CODE);
	}
	gss_release_buffer_set(&minor, &key);
	gss_release_buffer(&minor, &name);
	gss_release_buffer(&minor, &reply);
	gss_release_name(&minor, &client);
	gss_delete_sec_context(&minor, &context, GSS_C_NO_BUFFER);
	return n;
}

static void respond(int fd, const struct nlmsghdr *to, const struct request *request)
{
	struct {
		struct nlmsghdr nl;
		struct genlmsghdr genl;
		struct nlattr attr;
		char payload[8192];
	} m = { .nl = *to, .genl = { .cmd = SPNEGO_AUTHEN_RESPONSE, .version = 1 }, .attr.nla_type = SPNEGO_AUTHEN_RESPONSE };
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };

	m.attr.nla_len = NLA_HDRLEN + answer(request, m.payload, sizeof(m.payload));
	m.nl.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN + m.attr.nla_len);
	m.nl.nlmsg_flags = NLM_F_REQUEST;
	m.nl.nlmsg_pid = 0;
	if (sendto(fd, &m, NLMSG_ALIGN(m.nl.nlmsg_len), 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
		perror("kerberos: answering ksmbd");
}

ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
	ssize_t (*next)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
	struct nlmsghdr *nl = msg->msg_iov[0].iov_base;
	struct genlmsghdr *genl;
	ssize_t n = next(fd, msg, flags);

	if (n < (ssize_t)NLMSG_LENGTH(GENL_HDRLEN + NLA_HDRLEN + sizeof(struct request)) || flags & MSG_PEEK ||
	    nl->nlmsg_type < NLMSG_MIN_TYPE)
		return n;
	genl = NLMSG_DATA(nl);
	if (genl->cmd == SPNEGO_AUTHEN_REQUEST) {
		respond(fd, nl, (void *)((char *)genl + GENL_HDRLEN + NLA_HDRLEN));
		nl->nlmsg_type = NLMSG_NOOP; /* libnl skips it */
	}
	return n;
}
