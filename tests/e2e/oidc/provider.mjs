// An OpenID provider on loopback: `node provider.mjs CALLBACK_URL`; prints `ready ISSUER` when it accepts connections.
// Whoever logs in is who they say, with any password; the address is verified unless the name ends in `-unverified`.
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const [callback] = process.argv.slice(2);
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'management',
      client_secret: 'client-secret',
      redirect_uris: [callback],
      grant_types: ['authorization_code'],
      response_types: ['code'],
    }, {
      client_id: 'agents',
      token_endpoint_auth_method: 'none',
      application_type: 'native',
      redirect_uris: [],
      grant_types: ['urn:ietf:params:oauth:grant-type:device_code'],
      response_types: [],
    }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    conformIdTokenClaims: false,
    features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true } },
    pkce: { required: () => true },
    cookies: { keys: ['for tests only'] },
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({
        sub: id, name: id, email: `${id}@people.example`, email_verified: !id.endsWith('-unverified'),
      }),
    }),
  });
  server.on('request', provider.callback());
  console.log(`ready ${issuer}`);
});
