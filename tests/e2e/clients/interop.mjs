// Calls the methods of tests/service/transports/interop.py and prints what came of it as JSON:
//   node interop.mjs CLIENT HOST:PORT DESCRIPTORS
// CLIENT is one of those below, DESCRIPTORS a FileDescriptorSet that has the service test.Interop.
import { readFileSync } from 'node:fs';
import { createFileRegistry, fromBinary, fromJson, toBinary } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { compressionGzip, createGrpcTransport, createGrpcWebTransport } from '@connectrpc/connect-node';
import { createGrpcWebTransport as createFetchTransport } from '@connectrpc/connect-web';
import grpc from '@grpc/grpc-js';

const [, , client, address, path] = process.argv;
const bytes = readFileSync(path);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
const service = registry.getService('test.Interop');
const struct = registry.getMessage('google.protobuf.Struct');
const bytesValue = registry.getMessage('google.protobuf.BytesValue');
const asking = (fields) => fromJson(struct, fields, { registry });

const INITIAL = 'x-grpc-test-echo-initial';
const TRAILING = 'x-grpc-test-echo-trailing-bin';
const SIZES = [31415, 9, 2653, 58979];
const MESSAGE = '\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n';

// Each client offers the same: an answer is the sizes of its replies, or {code, message}.
const clients = {
  'grpc-js': nodeGrpc,
  'connect-grpc': () => connect(createGrpcTransport({ baseUrl: `http://${address}` })),
  'connect-grpc-gzip': () => connect(createGrpcTransport({ baseUrl: `http://${address}`, sendCompression: compressionGzip, compressMinBytes: 0 })),
  'connect-web': () => connect(createGrpcWebTransport({ baseUrl: `http://${address}`, httpVersion: '1.1' }), true),
  'connect-web-http2': () => connect(createGrpcWebTransport({ baseUrl: `http://${address}`, httpVersion: '2' }), true),
  'fetch-web': () => connect(createFetchTransport({ baseUrl: `http://${address}` }), true),
  'grpc-web-text': () => googleWeb('text'),
  'grpc-web-binary': () => googleWeb('binary'),
};


function connect(transport, isWeb = false) {
  const api = createClient(service, transport);
  const failed = (error) => {
    const known = ConnectError.from(error);
    return { code: Code[known.code].replace(/([a-z])([A-Z])/g, '$1_$2').toUpperCase(), message: known.rawMessage };
  };
  const all = async (replies) => {
    const sizes = [];
    for await (const reply of replies) sizes.push(reply.value.length);
    return sizes;
  };
  async function* requests(fields) {
    for (const each of fields) yield asking(each);
  }
  return {
    unary: async (fields, options = {}) => {
      try {
        return [(await api.unary(asking(fields), options)).value.length];
      } catch (error) {
        return failed(error);
      }
    },
    output: (fields) => all(api.output(asking(fields))).catch(failed),
    duplex: isWeb ? null : (fields) => all(api.duplex(requests(fields))).catch(failed),
    cancelled: async () => {
      const stop = new AbortController();
      for await (const _ of api.flood(asking({ size: 10 }), { signal: stop.signal })) stop.abort();
    },
    metadata: async () => {
      let initial, trailing;
      await api.unary(asking({ size: 1 }), {
        headers: { [INITIAL]: 'test_initial', [TRAILING]: 'Cgv/' },
        onHeader: (headers) => (initial = headers.get(INITIAL)),
        onTrailer: (trailers) => (trailing = trailers.get(TRAILING)),
      });
      return { initial, trailing: trailing.replace(/=+$/, '') };
    },
  };
}

function nodeGrpc() {
  const api = new grpc.Client(address, grpc.credentials.createInsecure());
  const method = (name) => [
    `/test.Interop/${name}`,
    (fields) => Buffer.from(toBinary(struct, asking(fields))),
    (data) => fromBinary(bytesValue, data),
  ];
  const failed = (error) => ({ code: grpc.status[error.code], message: error.details });
  const all = (call) =>
    new Promise((resolve) => {
      const sizes = [];
      call.on('data', (reply) => sizes.push(reply.value.length));
      call.on('error', (error) => resolve(failed(error)));
      call.on('end', () => resolve(sizes));
    });
  return {
    unary: (fields, options = {}) =>
      new Promise((resolve) => {
        const deadline = options.timeoutMs ? { deadline: Date.now() + options.timeoutMs } : {};
        api.makeUnaryRequest(...method('Unary'), fields, new grpc.Metadata(), deadline, (error, reply) =>
          resolve(error ? failed(error) : [reply.value.length]));
      }),
    output: (fields) => all(api.makeServerStreamRequest(...method('Output'), fields)),
    duplex: (fields) => {
      const call = api.makeBidiStreamRequest(...method('Duplex'));
      const replies = all(call);
      for (const each of fields) call.write(each);
      call.end();
      return replies;
    },
    cancelled: () =>
      new Promise((resolve) => {
        const call = api.makeServerStreamRequest(...method('Flood'), { size: 10 });
        call.on('data', () => call.cancel());
        call.on('error', resolve);
      }),
    metadata: () =>
      new Promise((resolve) => {
        const metadata = new grpc.Metadata();
        metadata.set(INITIAL, 'test_initial');
        metadata.set(TRAILING, Buffer.from('Cgv/', 'base64'));
        let initial;
        const call = api.makeUnaryRequest(...method('Unary'), { size: 1 }, metadata, () => {});
        call.on('metadata', (headers) => (initial = headers.get(INITIAL)[0]));
        call.on('status', (status) =>
          resolve({ initial, trailing: status.metadata.get(TRAILING)[0].toString('base64').replace(/=+$/, '') }));
      }),
  };
}

async function googleWeb(format) {
  globalThis.XMLHttpRequest = (await import('xhr2')).default;
  const { default: web } = await import('grpc-web');
  const base = new web.GrpcWebClientBase({ format });
  const names = Object.fromEntries(Object.entries(web.StatusCode).map(([name, code]) => [code, name]));
  const failed = (error) => ({ code: names[error.code], message: error.message });
  const method = (name, kind) =>
    new web.MethodDescriptor(`/test.Interop/${name}`, kind, Object, Object,
      (fields) => toBinary(struct, asking(fields)), (data) => fromBinary(bytesValue, data));
  const url = (name) => `http://${address}/test.Interop/${name}`;
  return {
    unary: (fields, options = {}) =>
      new Promise((resolve) => {
        const metadata = options.timeoutMs ? { deadline: `${Date.now() + options.timeoutMs}` } : {};
        base.rpcCall(url('Unary'), fields, metadata, method('Unary', web.MethodType.UNARY), (error, reply) =>
          resolve(error ? failed(error) : [reply.value.length]));
      }),
    output: (fields) =>
      new Promise((resolve) => {
        const sizes = [];
        const call = base.serverStreaming(url('Output'), fields, {}, method('Output', web.MethodType.SERVER_STREAMING));
        call.on('data', (reply) => sizes.push(reply.value.length));
        call.on('error', (error) => resolve(failed(error)));
        call.on('end', () => resolve(sizes));
      }),
    duplex: null,
    cancelled: null,
    metadata: null,
  };
}

const api = await clients[client]();
const found = {
  unary: await api.unary({ size: 314159, padding: 'x'.repeat(271828) }),
  compressed: await api.unary({ size: 314159, compressed: true }),
  many: (await Promise.all(Array.from({ length: 100 }, (_, size) => api.unary({ size })))).flat(),
  output: await api.output({ sizes: SIZES }),
  nothing: await api.output({ sizes: [] }),
  status: await api.unary({ code: 'NOT_FOUND', message: MESSAGE }),
  streamStatus: await api.output({ sizes: [1], code: 'ABORTED', message: MESSAGE }),
  deadline: (await api.unary({ waits: true }, { timeoutMs: 50 })).code,
};
if (api.duplex) found.duplex = await api.duplex(SIZES.map((size) => ({ size })));
if (api.metadata) found.metadata = await api.metadata();
if (api.cancelled) await api.cancelled().catch(() => {});
console.log(JSON.stringify(found));
process.exit(0);
